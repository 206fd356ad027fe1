%% @doc The distribution controller of one connection: the process that the
%% VM, `dist_util' and `net_kernel' know as the connection.
%%
%% It has two lives. Until the handshake completes it serves the process that
%% runs `dist_util' (send/2, recv/3 and so on), on the control stream. Then it
%% carries the traffic, both ways (`quic_dist_traffic'). Here are its calls, the
%% first life, and what both lives do.
%%
%% It does not trap exits. It is linked to the process that runs `dist_util' and
%% to `net_kernel'; whichever dies first decides the reason of `nodedown', and
%% the engine closes the QUIC connection as its owner is gone.
-module(quic_dist_controller).

-export([start_link/4, set_supervisor/2, get_node/1,
         first_message/1, send/2, recv/3, getll/1, set_node/2,
         get_address/2, pre_nodeup/1,
         handshake_complete/3, tick/1, getstat/1, info/1]).
-export([open_user_stream/2, open_user_stream/3, send_user_data/4,
         close_user_stream/2, reset_user_stream/2, reset_user_stream/3,
         accept_user_streams/2, stop_accepting_streams/1,
         controlling_process/3, list_user_streams/1]).
-export([init/4, handshake_loop/1, common_call/3, moved/3, end_with/2]).

-export_type([link/0]).

-include_lib("kernel/include/net_address.hrl").

%% No peer has more than this many handshake messages to say before an answer.
-define(MAX_UNREAD, 16).

%% What is known of the connection, in both lives.
-type link() :: #{conn := quic_dist_nif:connection(),
                  family := quic_dist_opts:family(),
                  peer := quic_dist_nif:peer(),
                  node := undefined | node()}.

%% The handshake.
-record(state, {link :: link(),
                %% messages not yet asked for, oldest first
                unread = [] :: [binary()],
                %% the last message, if it is ours, until it is complete
                last :: undefined | iodata(),
                %% who waits in recv/3, and its timer
                reader :: undefined | {reference(), undefined | reference()},
                %% who waits in first_message/1
                looker :: undefined | reference(),
                %% why the connection has ended
                closed :: undefined | quic_dist_nif:close_reason(),
                %% whether the VM has been, or is being, told of the connection
                nodeup = false :: boolean()}).

%%% What the handshake uses

%% @doc Starts the controller of a connection that has completed its QUIC
%% handshake, linked to the caller, and makes it the connection's owner. Of one
%% that has ended meanwhile, the caller is the owner.
-spec start_link(quic_dist_nif:connection(), quic_dist_opts:family(),
                 quic_dist_nif:peer(), node() | undefined) ->
          {ok, pid()} | {error, closed}.
start_link(Conn, Family, Peer, Node) ->
    %% Its queue of messages is not `off_heap': what the engine tells comes from
    %% several threads, one after the other, and such a queue keeps the order of
    %% one sender only where many send at once.
    Pid = spawn_opt(?MODULE, init, [Conn, Family, Peer, Node],
                    [link, {priority, max}, {fullsweep_after, 0}]),
    case quic_dist_nif:set_owner(Conn, Pid) of
        ok ->
            {ok, Pid};
        {error, closed} ->
            _ = quic_dist_nif:set_owner(Conn, self()),
            unlink(Pid),
            exit(Pid, kill),
            {error, closed}
    end.

%% @doc Sets the supervisor of the connection: `net_kernel', to which the
%% controller is linked from then on.
-spec set_supervisor(pid(), Kernel :: pid()) -> ok | {error, closed}.
set_supervisor(Controller, Kernel) ->
    call(Controller, {set_supervisor, Kernel}).

%% @doc The name of the other node, if it is known yet.
-spec get_node(pid()) -> {ok, node()} | undefined | {error, closed}.
get_node(Controller) ->
    call(Controller, get_node).

%% @doc Sends one handshake message.
-spec send(pid(), iodata()) -> ok | {error, closed | too_long}.
send(Controller, Message) ->
    call(Controller, {send, Message}).

%% @doc Waits for the first handshake message, which recv/3 will still give.
-spec first_message(pid()) -> {ok, binary()} | {error, closed}.
first_message(Controller) ->
    call(Controller, first_message).

%% @doc Receives one handshake message. Messages have a length of their own:
%% `Length' must be 0, as with gen_tcp's `{packet, N}'.
-spec recv(pid(), Length :: non_neg_integer(), timeout()) ->
          {ok, [byte()]} | {error, closed | timeout | einval | ealready}.
recv(Controller, 0, Timeout) ->
    call(Controller, {recv, Timeout});
recv(_Controller, _Length, _Timeout) ->
    {error, einval}.

%% @doc What the VM is to know as the connection: the controller itself.
-spec getll(pid()) -> {ok, pid()}.
getll(Controller) ->
    {ok, Controller}.

%% @doc Sets the name of the other node, once: the VM knows it, and `net_kernel'
%% is about to. From now on the connection is found by the node's name, so that
%% who has connected to a node can use its streams.
-spec set_node(pid(), node()) -> ok | {error, closed | einval}.
set_node(Controller, Node) ->
    call(Controller, {set_node, Node}).

%% @doc The address of the node, for `net_kernel:node_info/1'.
-spec get_address(pid(), node()) ->
          {ok, #net_address{}} | {error, no_node | closed}.
get_address(Controller, Node) ->
    case {dist_util:split_node(Node), call(Controller, get_address)} of
        {{node, _Name, Host}, {ok, Family, Peer}} ->
            {ok, #net_address{address = Peer, host = Host,
                              protocol = quic, family = Family}};
        {{node, _Name, _Host}, {error, closed}} ->
            {error, closed};
        _ ->
            {error, no_node}
    end.

%% @doc The last step before the VM is told of the connection. It is the VM
%% itself (in `erlang:setnode/3') that tells `net_kernel' of the controller;
%% what is left to do here is to refuse a connection that has ended meanwhile,
%% and to end with the connection from now on.
-spec pre_nodeup(pid()) -> ok | {error, closed}.
pre_nodeup(Controller) ->
    call(Controller, pre_nodeup).

%% @doc The node is up: starts the traffic.
-spec handshake_complete(pid(), node(), erlang:dist_handle()) ->
          ok | {error, closed}.
handshake_complete(Controller, _Node, DHandle) ->
    call(Controller, {handshake_complete, DHandle}).

%%% What the connection's tick loop uses

%% @doc Sends a tick. Does not wait.
-spec tick(pid()) -> ok.
tick(Controller) ->
    Controller ! tick,
    ok.

%% @doc Counters of QUIC packets, hence signs of life even where flow control
%% holds data back; and that nothing pends.
%%
%% `dist_util' sends no tick while anything pends: it would wait behind that,
%% which is a sign of life itself when it goes. Here a tick waits for nothing.
%% Data may: of two nodes that both have to say more than the other one reads,
%% neither would send anything, and each would take the other for dead.
-spec getstat(pid()) ->
          {ok, RecvCnt :: non_neg_integer(), SendCnt :: non_neg_integer(),
           SendPend :: 0}
        | {error, closed}.
getstat(Controller) ->
    call(Controller, getstat).

%% @doc What `quic_dist:info/0' says of the connection.
-spec info(pid()) -> {ok, map()} | {error, closed}.
info(Controller) ->
    case call(Controller, get_connection) of
        {ok, Conn} -> quic_dist_nif:info(Conn);
        {error, closed} -> {error, closed}
    end.

%%% The application's own streams. The controller itself takes no part in them:
%%% it only stands for the connection.

-type stream_error() :: quic_dist_stream:error() | not_connected.

%% @doc Opens a stream for `Owner'; see `quic_dist:open_stream/1'.
-spec open_user_stream(pid(), Owner :: pid()) ->
          {ok, non_neg_integer()} | {error, stream_error()}.
open_user_stream(Controller, Owner) ->
    open_user_stream(Controller, Owner, []).

%% @doc The same with options; see `quic_dist:open_stream/2'.
-spec open_user_stream(pid(), Owner :: pid(), [quic_dist_stream:open_opt()]) ->
          {ok, non_neg_integer()} | {error, stream_error()}.
open_user_stream(Controller, Owner, Opts) ->
    with_connection(Controller, fun(Conn, _Node) ->
                                        quic_dist_stream:open(Conn, Owner, Opts)
                                end).

%% @doc Sends on a stream; see `quic_dist:send/3'.
-spec send_user_data(pid(), StreamId :: non_neg_integer(), iodata(),
                     Fin :: boolean()) ->
          ok | {error, stream_error() | busy | timeout | {timeout, binary()}}.
send_user_data(Controller, StreamId, Data, Fin) ->
    with_connection(Controller,
                    fun(Conn, _Node) ->
                            quic_dist_stream:send(Conn, StreamId, Data,
                                                  [{fin, Fin}])
                    end).

%% @doc Finishes this side of a stream; see `quic_dist:close_stream/1'.
-spec close_user_stream(pid(), StreamId :: non_neg_integer()) ->
          ok | {error, stream_error()}.
close_user_stream(Controller, StreamId) ->
    with_connection(Controller, fun(Conn, _Node) ->
                                        quic_dist_stream:close(Conn, StreamId)
                                end).

%% @doc Cancels a stream with code 0.
-spec reset_user_stream(pid(), StreamId :: non_neg_integer()) ->
          ok | {error, stream_error()}.
reset_user_stream(Controller, StreamId) ->
    reset_user_stream(Controller, StreamId, 0).

%% @doc Cancels a stream; see `quic_dist:reset_stream/2'.
-spec reset_user_stream(pid(), StreamId :: non_neg_integer(),
                        ErrorCode :: non_neg_integer()) ->
          ok | {error, stream_error()}.
reset_user_stream(Controller, StreamId, ErrorCode) ->
    with_connection(Controller, fun(Conn, _Node) ->
                                        quic_dist_stream:reset(Conn, StreamId,
                                                               ErrorCode)
                                end).

%% @doc Adds an acceptor of streams; see `quic_dist:accept_streams/1'.
-spec accept_user_streams(pid(), Acceptor :: pid()) ->
          ok | {error, stream_error()}.
accept_user_streams(Controller, Acceptor) ->
    with_connection(Controller, fun(Conn, _Node) ->
                                        quic_dist_stream:accept(Conn, Acceptor, [])
                                end).

%% @doc The caller accepts no more streams.
-spec stop_accepting_streams(pid()) -> ok.
stop_accepting_streams(Controller) ->
    case with_connection(Controller,
                         fun(Conn, _Node) ->
                                 quic_dist_stream:stop_accepting(Conn, self())
                         end) of
        ok -> ok;
        {error, not_connected} -> ok
    end.

%% @doc Gives a stream of the caller's away; see
%% `quic_dist:controlling_process/2'.
-spec controlling_process(pid(), StreamId :: non_neg_integer(),
                          NewOwner :: pid()) -> ok | {error, stream_error()}.
controlling_process(Controller, StreamId, NewOwner) ->
    with_connection(Controller,
                    fun(Conn, Node) ->
                            quic_dist_stream:controlling_process(
                              Conn, Node, StreamId, NewOwner)
                    end).

%% @doc The streams of the connection.
-spec list_user_streams(pid()) -> [quic_dist_stream:info()].
list_user_streams(Controller) ->
    case with_connection(Controller, fun quic_dist_stream:list/2) of
        {error, not_connected} -> [];
        Streams -> Streams
    end.

with_connection(Controller, Fun) ->
    case quic_dist_nodes:connection(Controller) of
        {ok, Conn, Node} -> Fun(Conn, Node);
        {error, not_connected} -> {error, not_connected}
    end.

call(Controller, Request) ->
    Alias = erlang:monitor(process, Controller, [{alias, reply_demonitor}]),
    Controller ! {?MODULE, Alias, Request},
    receive
        {Alias, Reply} -> Reply;
        {'DOWN', Alias, process, _, _} -> {error, closed}
    end.

reply(Alias, Reply) ->
    Alias ! {Alias, Reply},
    ok.

%%% First life: the handshake

%% @private
-spec init(quic_dist_nif:connection(), quic_dist_opts:family(),
           quic_dist_nif:peer(), node() | undefined) -> no_return().
init(Conn, Family, Peer, Node) ->
    handshake_loop(#state{link = #{conn => Conn, family => Family, peer => Peer,
                                   node => Node}}).

%% @private
-spec handshake_loop(#state{}) -> no_return().
handshake_loop(#state{link = #{conn := Conn} = Link} = State) ->
    receive
        {?MODULE, From, {handshake_complete, DHandle}} ->
            complete(From, DHandle, State);
        {?MODULE, From, Request} ->
            ?MODULE:handshake_loop(handshake_call(Request, From, State));
        {quic_dist, Conn, {control, Messages}} ->
            ?MODULE:handshake_loop(unread(Messages, State));
        {quic_dist, Conn, {closed, Reason}} ->
            ?MODULE:handshake_loop(closed_in_handshake(Reason, State));
        {timeout, Timer, recv} ->
            ?MODULE:handshake_loop(recv_timeout(Timer, State));
        {quic_dist, Conn, {moved, From, To}} ->
            ?MODULE:handshake_loop(State#state{link = moved(From, To, Link)});
        _Unexpected ->
            ?MODULE:handshake_loop(State)
    end.

handshake_call({send, _Message}, From, #state{closed = Reason} = State)
  when Reason =/= undefined ->
    reply(From, {error, closed}),
    State;
handshake_call({send, Message}, From,
               #state{link = #{conn := Conn}} = State) ->
    case iolist_to_binary(Message) of
        <<$a, _/binary>> ->
            %% send_challenge_ack: whom it reaches takes the connection for up.
            %% It leaves when that is so here as well, in complete/3: who
            %% has connected to a node then finds itself in its nodes().
            reply(From, ok),
            State#state{last = Message};
        _ ->
            case quic_dist_nif:control_send(Conn, Message) of
                {error, closed} = Error ->
                    %% Who has called ends by this, and takes this process along,
                    %% which has to say first why. That is on its way.
                    receive
                        {quic_dist, Conn, {closed, Reason}} ->
                            Closed = closed_in_handshake(Reason, State),
                            reply(From, Error),
                            Closed
                    end;
                Result ->
                    reply(From, Result),
                    State
            end
    end;
handshake_call({recv, Timeout}, From, #state{reader = undefined} = State) ->
    Timer = case Timeout of
                infinity -> undefined;
                _ -> erlang:start_timer(Timeout, self(), recv)
            end,
    serve_reader(State#state{reader = {From, Timer}});
handshake_call({recv, _Timeout}, From, State) ->
    reply(From, {error, ealready}),
    State;
handshake_call(first_message, From, State) ->
    serve_looker(State#state{looker = From});
handshake_call(pre_nodeup, From, #state{closed = undefined} = State) ->
    reply(From, ok),
    State#state{nodeup = true};
handshake_call(pre_nodeup, From, State) ->
    reply(From, {error, closed}),
    State;
handshake_call({set_node, _Node}, From, #state{closed = Closed} = State)
  when Closed =/= undefined ->
    reply(From, {error, closed}),
    State;
handshake_call({set_node, Node}, From, #state{link = #{node := Known}} = State)
  when Known =/= undefined, Known =/= Node ->
    reply(From, {error, einval}),
    State;
handshake_call({set_node, Node}, From,
               #state{link = #{conn := Conn, family := Family} = Link} = State) ->
    ok = quic_dist_nif:streams_start(Conn, Node),
    ok = quic_dist_endpoint:connected(Family, Node, Conn),
    reply(From, ok),
    State#state{link = Link#{node := Node}};
handshake_call(Request, From, #state{link = Link} = State) ->
    State#state{link = common_call(Request, From, Link)}.

unread(Messages, #state{unread = Unread, link = #{conn := Conn}} = State) ->
    case Unread ++ Messages of
        TooMany when length(TooMany) > ?MAX_UNREAD ->
            ok = quic_dist_nif:close(Conn, <<"too many handshake messages">>),
            State#state{unread = []};
        More ->
            serve_reader(serve_looker(State#state{unread = More}))
    end.

serve_looker(#state{looker = undefined} = State) ->
    State;
serve_looker(#state{looker = From, unread = [Message | _]} = State) ->
    reply(From, {ok, Message}),
    State#state{looker = undefined};
serve_looker(#state{closed = undefined} = State) ->
    State;
serve_looker(#state{looker = From} = State) ->
    reply(From, {error, closed}),
    State#state{looker = undefined}.

%% What arrived before the end is served before the end.
serve_reader(#state{reader = undefined} = State) ->
    State;
serve_reader(#state{unread = [Message | Unread]} = State) ->
    answer_reader({ok, binary_to_list(Message)}, State#state{unread = Unread});
serve_reader(#state{closed = undefined} = State) ->
    State;
serve_reader(State) ->
    answer_reader({error, closed}, State).

answer_reader(Answer, #state{reader = {From, Timer}} = State) ->
    _ = case Timer of
            undefined -> ok;
            _ -> erlang:cancel_timer(Timer)
        end,
    reply(From, Answer),
    State#state{reader = undefined}.

recv_timeout(Timer, #state{reader = {From, Timer}} = State) ->
    reply(From, {error, timeout}),
    State#state{reader = undefined};
recv_timeout(_Answered, State) ->
    State.

%% Not an end to this process, before nodeup: of two nodes that dial each other
%% one is told "nok", and the connection closed. The process that runs dist_util
%% there waits to be killed by net_kernel, when the other dial has been
%% accepted. If it died earlier, that would count as a failure to connect.
closed_in_handshake(Reason, #state{nodeup = false,
                                   link = #{node := Node, peer := Peer}} = State) ->
    quic_dist_log:closed(Node, Peer, Reason),
    serve_reader(serve_looker(State#state{closed = Reason}));
closed_in_handshake(Reason, #state{link = Link}) ->
    end_with(Reason, Link).

%% The last of the first life: the VM has the connection.
-spec complete(reference(), erlang:dist_handle(), #state{}) -> no_return().
complete(From, DHandle, #state{link = #{conn := Conn} = Link, last = Last}) ->
    false = erlang:dist_ctrl_set_opt(DHandle, get_size, true),
    %% When one of them fails, `closed' is on its way.
    _ = quic_dist_nif:set_input(Conn, self()),
    _ = case Last of
            undefined -> ok;
            _ -> quic_dist_nif:control_send(Conn, Last)
        end,
    reply(From, ok),
    quic_dist_traffic:start(Link, DHandle).

%%% Both lives

%% @private
-spec common_call(Request :: term(), reference(), link()) -> link().
common_call({set_supervisor, Kernel}, From, Link) ->
    link(Kernel),
    reply(From, ok),
    Link;
%% In the second life it is too late.
common_call({set_node, Node}, From, #{node := Known} = Link) ->
    reply(From, case Known of
                    Node -> ok;
                    _ -> {error, einval}
                end),
    Link;
common_call(get_node, From, #{node := undefined} = Link) ->
    reply(From, undefined),
    Link;
common_call(get_node, From, #{node := Node} = Link) ->
    reply(From, {ok, Node}),
    Link;
common_call(get_address, From, #{family := Family, peer := Peer} = Link) ->
    reply(From, {ok, Family, Peer}),
    Link;
common_call(get_connection, From, #{conn := Conn} = Link) ->
    reply(From, {ok, Conn}),
    Link;
common_call(getstat, From, #{conn := Conn} = Link) ->
    reply(From, case quic_dist_nif:stats(Conn) of
                    {ok, Received, Sent, _Pending} -> {ok, Received, Sent, 0};
                    {error, closed} -> {error, closed}
                end),
    Link.

%% @private An address has changed: this host's, the peer's, or what a NAT makes
%% of it.
-spec moved(quic_dist_nif:path(), quic_dist_nif:path(), link()) -> link().
moved(From, {_Local, Peer} = To, #{node := Node} = Link) ->
    quic_dist_log:moved(Node, From, To),
    Link#{peer := Peer}.

%% @private
-spec end_with(quic_dist_nif:close_reason(), link()) -> no_return().
end_with(Reason, #{node := Node, peer := Peer}) ->
    quic_dist_log:closed(Node, Peer, Reason),
    exit(quic_dist_log:exit_reason(Reason)).
