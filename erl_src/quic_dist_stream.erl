%% @doc The application's own streams, by connection: what `quic_dist' offers
%% by node name and `quic_dist_controller' by controller, done here.
%%
%% Everything happens in the calling process, which calls the engine itself:
%% the controller of the connection takes no part, so streams do not queue
%% behind it or behind each other.
-module(quic_dist_stream).

-export([open/3, send/4, close/2, reset/3, recv/4, setopts/3, getopts/3,
         set_priority/3, controlling_process/4, accept/3, stop_accepting/2,
         list/2,
         send_datagram/2, accept_datagrams/2, stop_accepting_datagrams/2,
         datagram_size/1]).
%% for quic_dist_file
-export([await_room/3, recv_piece/4, deadline/1]).

-export_type([ref/0, open_opt/0, direction/0, priority/0, active/0,
              active_opt/0, send_opt/0, info/0, end_reason/0, message/0,
              error/0, bad_option/0]).

%% A stream of the connection to that node. A number is used once by a
%% connection, and again by the next connection to the same node.
-type ref() :: {quic_dist_stream, node(), StreamId :: non_neg_integer()}.
-type direction() :: bidi | uni.
%% Lower is served first. What is below 16 is the distribution's own. An integer
%% outside is taken for the nearest.
-type priority() :: 16..255.
%% As with `inet': what arrives is sent to the owner as messages (`true'), one
%% of them (`once'), `N' more of them, or none (`false': recv/4 takes it). What
%% is not taken stays with the peer.
-type active() :: true | false | once | -32768..32767.
-type active_opt() :: {active, active()}.
-type open_opt() :: {priority, priority()}
                  | {direction, direction()}
                  | active_opt().
%% `fin': nothing comes after this. `nosuspend': `{error, busy}' in place of
%% waiting. `{timeout, _}': wait at most that long (milliseconds).
-type send_opt() :: fin | {fin, boolean()} | nosuspend | {timeout, timeout()}.
-type info() :: #{ref := ref(),
                  node := node(),
                  stream_id := non_neg_integer(),
                  owner := pid(),
                  priority := priority(),
                  direction := direction(),
                  active := true | false | once | non_neg_integer(),
                  %% the peer has finished, and the owner has been told
                  recv_fin := boolean(),
                  %% this side has finished
                  send_fin := boolean(),
                  %% bytes that wait for the stream's turn
                  queued := non_neg_integer()}.
%% Why a stream was cut: a code of either side's, or the end of the connection.
-type end_reason() :: {reset, Code :: non_neg_integer()
                            | {connection, quic_dist_nif:close_reason()}}.
%% What an owner receives. After `closed' and `{reset, _}' nothing more comes.
%% `passive': a count has reached 0; or an acceptor that takes streams as passive
%% ones has a new one.
-type message() :: {quic_dist_stream, ref(),
                    {data, binary(), Fin :: boolean()}
                    | passive
                    | closed
                    | end_reason()}.
-type bad_option() :: {bad_option, Name :: term(), Value :: term()}.
-type error() :: closed            % the connection, or this direction, has ended
               | unknown_stream    % it never was, or has ended
               | not_owner
               | stream_limit
               | bad_option()
               | end_reason().

-type conn() :: quic_dist_nif:connection().
-type id() :: non_neg_integer().

%% What one call of the engine copies at most on an ordinary scheduler.
-define(PIECE, 1048576).
%% What it does not copy, from this size on (native/src/output.rs).
-define(KEPT, 8192).
%% What one recv may ask for.
-define(MAX_RECV, 67108864).
%% `receive' takes no longer ones (milliseconds; 49 days).
-define(MAX_WAIT, 16#ffffffff).
%% RFC 9000, section 16.
-define(MAX_CODE, 16#3fffffffffffffff).

%%% Streams

%% @doc Opens a stream for `Owner', a process of this node. The peer learns of
%% it with the first data, or its end.
-spec open(conn(), pid(), [open_opt()]) -> {ok, id()} | {error, error()}.
open(_Conn, Owner, _Opts) when not is_pid(Owner); node(Owner) =/= node() ->
    bad_option({owner, Owner});
open(Conn, Owner, Opts) ->
    maybe_options(fun(#{direction := Direction, priority := Priority,
                        active := Active}) ->
                          quic_dist_nif:stream_open(Conn, Owner,
                                                    Direction =:= uni,
                                                    Priority, Active)
                  end, Opts, #{direction => bidi, priority => 128,
                               active => true}).

%% @doc Sends, in order with what the same process has sent before. Waits while
%% the stream's queue is full (`user_stream_queue').
-spec send(conn(), id(), iodata(), [send_opt()]) ->
          ok | {error, error() | busy | timeout | {timeout, Rest :: binary()}}.
send(Conn, Id, Data, Opts) ->
    case send_options(Opts, false, infinity) of
        {ok, Fin, nosuspend} ->
            case send_now(Conn, Id, Data, Fin) of
                busy -> {error, busy};
                Sent -> Sent
            end;
        {ok, Fin, infinity} ->
            send_all(Conn, Id, Data, Fin, infinity);
        {ok, Fin, Timeout} ->
            send_all(Conn, Id, Data, Fin, deadline(Timeout));
        {error, _} = Error ->
            Error
    end.

send_options([fin | Opts], _Fin, Wait) ->
    send_options(Opts, true, Wait);
send_options([{fin, Fin} | Opts], _Fin, Wait) when is_boolean(Fin) ->
    send_options(Opts, Fin, Wait);
send_options([nosuspend | Opts], Fin, _Wait) ->
    send_options(Opts, Fin, nosuspend);
send_options([{timeout, infinity} | Opts], Fin, _Wait) ->
    send_options(Opts, Fin, infinity);
send_options([{timeout, Timeout} | Opts], Fin, _Wait)
  when is_integer(Timeout), Timeout >= 0 ->
    send_options(Opts, Fin, Timeout);
send_options([], Fin, Wait) ->
    {ok, Fin, Wait};
send_options([Bad | _], _Fin, _Wait) ->
    bad_option(Bad);
send_options(Bad, _Fin, _Wait) ->
    bad_option(Bad).

send_now(Conn, Id, Data, Fin) ->
    case iolist_size(Data) =< ?PIECE of
        true -> quic_dist_nif:stream_send(Conn, Id, own(Data), Fin);
        false -> quic_dist_nif:stream_send_large(Conn, Id, own(Data), Fin)
    end.

%% The engine keeps a large binary as long as any of it is queued or under way;
%% of a part of something larger it would keep all of that. What was received
%% lies in the engine's memory: the VM knows nothing of its size (the size that
%% it says is that of a reference), so it is taken for a part.
own(Data) when is_binary(Data), byte_size(Data) >= ?KEPT ->
    Size = byte_size(Data),
    case binary:referenced_byte_size(Data) of
        Whole when Whole >= Size, Whole =< 2 * Size -> Data;
        _ -> binary:copy(Data)
    end;
own(Data) ->
    Data.

%% In pieces, so that no scheduler is held up, and the queue holds no more than
%% its mark and one piece.
send_all(Conn, Id, Data, Fin, Deadline) ->
    case iolist_size(Data) =< ?PIECE of
        true -> send_piece(Conn, Id, own(Data), Fin, Deadline);
        false -> send_pieces(Conn, Id, iolist_to_binary(Data), Fin, Deadline, 0)
    end.

send_pieces(Conn, Id, Data, Fin, Deadline, Sent) ->
    case Data of
        <<Piece:?PIECE/binary, Rest/binary>> when Rest =/= <<>> ->
            case send_piece(Conn, Id, own(Piece), false, Deadline) of
                ok -> send_pieces(Conn, Id, Rest, Fin, Deadline, Sent + 1);
                Error -> cut_short(Error, Data, Sent)
            end;
        _ ->
            cut_short(send_piece(Conn, Id, own(Data), Fin, Deadline), Data, Sent)
    end.

cut_short({error, timeout}, Rest, Sent) when Sent > 0 ->
    {error, {timeout, Rest}};
cut_short(Result, _Rest, _Sent) ->
    Result.

send_piece(Conn, Id, Data, Fin, Deadline) ->
    case quic_dist_nif:stream_send(Conn, Id, Data, Fin) of
        busy ->
            case await_room(Conn, Id, Deadline) of
                ok -> send_piece(Conn, Id, Data, Fin, Deadline);
                {error, _} = Error -> Error
            end;
        Sent ->
            Sent
    end.

%% @private Waits until the stream's queue has room. `Deadline' is `infinity' or
%% a monotonic time in milliseconds.
-spec await_room(conn(), id(), infinity | integer()) ->
          ok | {error, error() | timeout}.
await_room(Conn, Id, Deadline) ->
    Ref = make_ref(),
    case quic_dist_nif:stream_await_room(Conn, Id, Ref) of
        wait -> await(Conn, Id, Ref, Deadline);
        Answer -> Answer
    end.

%% No monitor: whatever ends the wait - room or data, the stream's end, the
%% connection's, the endpoint's - is told by the engine to everybody who is
%% registered, under the lock under which stream_cancel/3 unregisters. So after
%% a time-out there is either no message to come, or it is there already.
await(Conn, Id, Ref, Deadline) ->
    receive
        {Ref, Answer} -> Answer
    after remaining(Deadline) ->
        case quic_dist_nif:stream_cancel(Conn, Id, Ref) of
            ok -> {error, timeout};
            told -> receive {Ref, Answer} -> Answer end
        end
    end.

%% @private
-spec deadline(timeout()) -> infinity | integer().
deadline(infinity) ->
    infinity;
deadline(Timeout) ->
    erlang:monotonic_time(millisecond) + min(Timeout, ?MAX_WAIT).

remaining(infinity) ->
    infinity;
remaining(Deadline) ->
    max(0, Deadline - erlang:monotonic_time(millisecond)).

%% @doc Finishes this side: the peer gets `Fin' after all that was sent. `ok' as
%% well if this side has finished before, or the stream has ended: who has said
%% all need not know whether the other side has.
-spec close(conn(), id()) -> ok | {error, error()}.
close(Conn, Id) ->
    quic_dist_nif:stream_finish(Conn, Id).

%% @doc Cuts both directions. What has not arrived is lost.
-spec reset(conn(), id(), Code :: non_neg_integer()) -> ok | {error, error()}.
reset(Conn, Id, Code) when is_integer(Code), Code >= 0, Code =< ?MAX_CODE ->
    quic_dist_nif:stream_reset(Conn, Id, Code);
reset(_Conn, _Id, Code) ->
    bad_option({code, Code}).

%% @doc Takes what a passive stream has: exactly `Length' bytes (at most
%% 64 MiB, `einval' beyond), or with 0 what there is, at least a byte. Fewer than
%% `Length' only at the end of what the peer sends; after that `{error, closed}'.
%% `einval' as well: the stream is not passive. `ealready': somebody else is here.
-spec recv(conn(), id(), Length :: non_neg_integer(), timeout()) ->
          {ok, binary()}
        | {error, error() | timeout | einval | ealready}.
recv(Conn, Id, Length, Timeout)
  when is_integer(Length), Length >= 0, Length =< ?MAX_RECV,
       (Timeout =:= infinity orelse is_integer(Timeout) andalso Timeout >= 0) ->
    case recv_piece(Conn, Id, Length, Timeout) of
        {ok, <<>>, true} -> {error, closed};
        {ok, Data, _Fin} -> {ok, Data};
        {error, _} = Error -> Error
    end;
recv(_Conn, _Id, _Length, _Timeout) ->
    {error, einval}.

%% @private The same, and whether that was all that the peer has to say.
-spec recv_piece(conn(), id(), Length :: non_neg_integer(), timeout()) ->
          {ok, binary(), Fin :: boolean()}
        | {error, error() | timeout | einval | ealready}.
recv_piece(Conn, Id, Length, Timeout) ->
    Deadline = deadline(Timeout),
    Ref = make_ref(),
    case quic_dist_nif:stream_recv(Conn, Id, Length, Ref) of
        wait -> await(Conn, Id, Ref, Deadline);
        {error, _} = Error -> Error
    end.

%% @doc Sets `active' and `priority': all of what is given, or nothing. `einval':
%% a count above 32767 in all, or somebody is in recv/4.
-spec setopts(conn(), id(), [active_opt() | {priority, priority()}]) ->
          ok | {error, error() | einval}.
setopts(Conn, Id, Opts) ->
    maybe_options(fun(#{direction := Direction}) ->
                          bad_option({direction, Direction});
                     (Set) ->
                          %% The one that can be refused comes first.
                          case apply_active(Conn, Id, Set) of
                              ok -> apply_priority(Conn, Id, Set);
                              {error, _} = Error -> Error
                          end
                  end, Opts, #{}).

apply_active(Conn, Id, #{active := Active}) ->
    quic_dist_nif:stream_set_active(Conn, Id, Active);
apply_active(_Conn, _Id, #{}) ->
    ok.

apply_priority(Conn, Id, #{priority := Priority}) ->
    quic_dist_nif:stream_set_priority(Conn, Id, Priority);
apply_priority(_Conn, _Id, #{}) ->
    ok.

%% @doc Reads what {@link info()} has, by name; `active' for example.
-spec getopts(conn(), ref(), [atom()]) ->
          {ok, [{atom(), term()}]} | {error, error()}.
getopts(Conn, {quic_dist_stream, Node, Id}, Names) ->
    case quic_dist_nif:stream_info(Conn, Id) of
        {ok, Found} ->
            Info = named(Found, Node),
            {ok, [{Name, maps:get(Name, Info)} || Name <- Names,
                                                  is_map_key(Name, Info)]};
        {error, unknown_stream} = Error ->
            Error
    end.

%% @doc Sets the priority of what is sent from now on.
-spec set_priority(conn(), id(), priority()) -> ok | {error, error()}.
set_priority(Conn, Id, Priority) ->
    maybe_options(fun(#{priority := Nearest}) ->
                          quic_dist_nif:stream_set_priority(Conn, Id, Nearest)
                  end, [{priority, Priority}], #{}).

%% @doc Gives the caller's stream to another process of this node, with what
%% of it the caller has received and not taken from its mailbox.
%%
%% From `stream_give' on the engine delivers nothing of the stream; what the
%% caller has been sent is in its mailbox then, and is forwarded before the new
%% owner gets anything from the engine.
%%
%% Messages of two senders have no order, though: to a mailbox that is kept off
%% the heap and that many send to, they go by different ways. What the new owner
%% was sent by the caller is in its mailbox when it answers a signal of the
%% caller's that was sent later.
-spec controlling_process(conn(), node(), id(), pid()) -> ok | {error, error()}.
controlling_process(Conn, Node, Id, NewOwner)
  when is_pid(NewOwner), node(NewOwner) =:= node() ->
    case quic_dist_nif:stream_give(Conn, Id) of
        ok when NewOwner =:= self() ->
            quic_dist_nif:stream_given(Conn, Id, NewOwner);
        ok ->
            Ref = {quic_dist_stream, Node, Id},
            _ = forward(Ref, NewOwner, false)
                andalso process_info(NewOwner, message_queue_len),
            quic_dist_nif:stream_given(Conn, Id, NewOwner);
        {error, _} = Error ->
            Error
    end;
controlling_process(_Conn, _Node, _Id, NewOwner) ->
    bad_option({owner, NewOwner}).

%% Whether there was anything.
forward(Ref, NewOwner, Forwarded) ->
    receive
        {quic_dist_stream, Ref, _} = Message ->
            NewOwner ! Message,
            forward(Ref, NewOwner, true)
    after 0 ->
        Forwarded
    end.

%% @doc Adds `Acceptor' to those who take turns in owning the streams that the
%% peer opens, or changes the mode in which it gets them.
-spec accept(conn(), pid(), [active_opt()]) -> ok | {error, error()}.
accept(_Conn, Acceptor, _Opts)
  when not is_pid(Acceptor); node(Acceptor) =/= node() ->
    bad_option({owner, Acceptor});
accept(Conn, Acceptor, Opts) ->
    maybe_options(fun(#{active := Active}) ->
                          quic_dist_nif:stream_accept(Conn, Acceptor, Active)
                  end, Opts, #{active => true}).

%% @doc Takes it out again. It keeps the streams that it owns.
-spec stop_accepting(conn(), pid()) -> ok.
stop_accepting(Conn, Acceptor) ->
    quic_dist_nif:stream_stop_accepting(Conn, Acceptor).

%% @doc The streams of a connection that have an owner.
-spec list(conn(), node()) -> [info()].
list(Conn, Node) ->
    [named(Info, Node) || Info <- quic_dist_nif:stream_list(Conn)].

named(#{stream_id := Id} = Info, Node) ->
    Info#{node => Node, ref => {quic_dist_stream, Node, Id}}.

%%% Datagrams

%% @doc Sends what would rather be lost than late, in one packet: at most
%% datagram_size/1 bytes. It arrives once, late, or never, in any order.
-spec send_datagram(conn(), iodata()) -> ok | {error, closed | too_long}.
send_datagram(Conn, Data) ->
    quic_dist_nif:datagram_send(Conn, Data).

%% @doc Adds `Acceptor' to those who take turns in getting datagrams.
-spec accept_datagrams(conn(), pid()) -> ok | {error, error()}.
accept_datagrams(Conn, Acceptor) ->
    quic_dist_nif:datagram_accept(Conn, Acceptor).

%% @doc Takes it out again.
-spec stop_accepting_datagrams(conn(), pid()) -> ok.
stop_accepting_datagrams(Conn, Acceptor) ->
    quic_dist_nif:datagram_stop_accepting(Conn, Acceptor).

%% @doc The longest datagram that fits a packet now, in bytes. It grows as the
%% path's MTU is found out.
-spec datagram_size(conn()) -> {ok, non_neg_integer()} | {error, closed}.
datagram_size(Conn) ->
    quic_dist_nif:datagram_size(Conn).

%%% Options

maybe_options(Fun, Opts, Defaults) ->
    case options(Opts, Defaults) of
        {ok, Set} -> Fun(Set);
        {error, _} = Error -> Error
    end.

options([Opt | Opts], Set) ->
    case Opt of
        {priority, P} when is_integer(P) ->
            options(Opts, Set#{priority => min(max(P, 16), 255)});
        {direction, D} when D =:= bidi; D =:= uni ->
            options(Opts, Set#{direction => D});
        {active, A} when is_boolean(A); A =:= once ->
            options(Opts, Set#{active => A});
        {active, N} when is_integer(N), N >= -32768, N =< 32767 ->
            options(Opts, Set#{active => N});
        _ ->
            bad_option(Opt)
    end;
options([], Set) ->
    {ok, Set};
options(Bad, _Set) ->
    bad_option(Bad).

bad_option({Name, Value}) ->
    {error, {bad_option, Name, Value}};
bad_option(Bad) ->
    {error, {bad_option, Bad, undefined}}.
