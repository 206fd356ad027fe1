%% @doc The distribution carrier of `-proto_dist quic': QUIC over IPv4.
%%
%% What `net_kernel' calls; all of it is `quic_dist_carrier' with the family
%% `inet'. Besides, `info/0' for people, and the streams of the application's
%% own, by node name, whatever the family; `quic_dist_stream' has their types.
%%
%% The caller of open_stream/1,2 owns the stream, and gets what arrives:
%% `{quic_dist_stream, StreamRef, {data, Data, Fin}}', and at its end once
%% `{quic_dist_stream, StreamRef, closed}' (both sides have finished) or
%% `{quic_dist_stream, StreamRef, {reset, Code}}'. When it dies, its streams are
%% reset with code 0. Any process may send, receive, close and reset.
%%
%% Errors of all of them: `not_connected', `not_quic_connection' (the node is
%% connected by another carrier), and those of each.
-module(quic_dist).

-export([childspecs/0, select/1, address/0, address/1, listen/1, listen/2,
         accept/1, accept_connection/5, setup/5, close/1, is_node_name/1,
         setopts/2, getopts/2]).
-export([info/0]).
-export([open_stream/1, open_stream/2, send/2, send/3, recv/2, recv/3,
         close_stream/1, reset_stream/1, reset_stream/2, set_priority/2,
         accept_streams/1, accept_streams/2, stop_accepting/1,
         controlling_process/2, list_streams/0, list_streams/1,
         get_controller/1]).
-export([send_file/3, send_file/4, recv_file/3, recv_file/4]).
-export([send_datagram/2, accept_datagrams/1, stop_accepting_datagrams/1,
         datagram_size/1]).

-export_type([stream_ref/0, stream_opt/0, stream_info/0]).

-include_lib("kernel/include/net_address.hrl").

-type stream_ref() :: quic_dist_stream:ref().
-type stream_opt() :: quic_dist_stream:open_opt().
-type stream_info() :: quic_dist_stream:info().
-type error() :: quic_dist_stream:error() | not_connected | not_quic_connection.

%% @doc The processes that run under `net_sup' before `net_kernel'.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    quic_dist_carrier:gen_childspecs(inet).

%% @doc Whether this carrier can reach a node of that name.
-spec select(node()) -> boolean().
select(Node) ->
    quic_dist_carrier:gen_select(inet, Node).

%% @doc The kind of address this carrier uses, for a node that does not listen.
-spec address() -> #net_address{}.
address() ->
    quic_dist_carrier:gen_address(inet).

%% @doc The same; OTP 28 gives the host part of the node's name.
-spec address(string()) -> #net_address{}.
address(Host) ->
    quic_dist_carrier:gen_address(inet, Host).

%% @doc Listens, and registers with EPMD.
-spec listen(atom()) -> quic_dist_carrier:listen_result().
listen(Name) ->
    {ok, Host} = inet:gethostname(),
    listen(Name, Host).

%% @doc Listens, and registers with EPMD.
-spec listen(atom(), string()) -> quic_dist_carrier:listen_result().
listen(Name, Host) ->
    quic_dist_carrier:gen_listen(inet, Name, Host).

%% @doc Starts the process that tells `net_kernel' of incoming connections.
-spec accept(quic_dist_carrier:listen_handle()) -> pid().
accept(Listen) ->
    quic_dist_carrier:gen_accept(Listen).

%% @doc Starts the process that shakes hands on an incoming connection.
-spec accept_connection(pid(), quic_dist_carrier:incoming(), node(), list(),
                        non_neg_integer()) -> pid().
accept_connection(AcceptPid, Incoming, MyNode, Allowed, SetupTime) ->
    quic_dist_carrier:gen_accept_connection(inet, AcceptPid, Incoming, MyNode,
                                            Allowed, SetupTime).

%% @doc Starts the process that dials a node.
-spec setup(node(), normal | hidden, node(), longnames | shortnames,
            non_neg_integer()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    quic_dist_carrier:gen_setup(inet, Node, Type, MyNode, LongOrShortNames,
                                SetupTime).

%% @doc Stops listening.
-spec close(quic_dist_carrier:listen_handle()) -> ok.
close(Listen) ->
    quic_dist_carrier:gen_close(Listen).

%% @doc Whether a term is the name of a node.
-spec is_node_name(term()) -> boolean().
is_node_name(Node) ->
    quic_dist_carrier:is_node_name(Node).

%% @doc Sets socket options (`net_kernel:setopts/2'), as far as QUIC has them;
%% and those of a stream: `{active, true | once | N | false}' as with `inet'
%% (when a count reaches 0: `{quic_dist_stream, StreamRef, passive}'), and
%% `{priority, 16..255}'. Of a stream `einval' says that a count would be above
%% 32767, what is left of the one before included, or that a process is in recv/2,3.
-spec setopts(term(), [{atom(), term()}]) -> ok | {error, term()}.
setopts({quic_dist_stream, _, _} = StreamRef, Opts) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_stream:setopts(Conn, Id, Opts)
                           end);
setopts(Handle, Opts) ->
    quic_dist_carrier:setopts(Handle, Opts).

%% @doc Reads socket options (`net_kernel:getopts/2'), as far as QUIC has them;
%% and of a stream what `quic_dist_stream:info()' has.
-spec getopts(term(), [atom()]) -> {ok, [{atom(), term()}]} | {error, error()}.
getopts({quic_dist_stream, _, _} = StreamRef, Opts) ->
    with_stream(StreamRef, fun(Conn, _Id) ->
                                   quic_dist_stream:getopts(Conn, StreamRef, Opts)
                           end);
getopts(Handle, Opts) ->
    quic_dist_carrier:getopts(Handle, Opts).

%% @doc The UDP endpoints of this node and its QUIC connections.
%%
%% Of each connection: `node', `controller' (a pid), `peer', `local', `role',
%% `tls_version', `cipher', `verified' (how the peer was authenticated),
%% `mtu', `srtt' and more, see `quic_dist_nif:info/1'.
-spec info() -> #{endpoints := [map()], connections := [map()]}.
info() ->
    #{endpoints => quic_dist_endpoint:info(inet)
          ++ quic_dist_endpoint:info(inet6),
      connections => lists:append([connection(Node, Pid)
                                   || {Node, Pid} <- erlang:system_info(dist_ctrl),
                                      is_pid(Pid)])}.

%% A node may use several carriers, and a connection may end meanwhile.
connection(Node, Pid) ->
    case erlang:process_info(Pid, initial_call) of
        {initial_call, {quic_dist_controller, _, _}} ->
            case quic_dist_controller:info(Pid) of
                {ok, Info} -> [Info#{node => Node, controller => Pid}];
                {error, closed} -> []
            end;
        _ ->
            []
    end.

%%% The application's own streams

%% @doc Opens a bidirectional stream of priority 128 to a connected node. The
%% caller owns it. The node learns of it with the first data, or its end.
-spec open_stream(node()) -> {ok, stream_ref()} | {error, error()}.
open_stream(Node) ->
    open_stream(Node, []).

%% @doc The same, with `{priority, 16..255}' (lower is served first),
%% `{direction, bidi | uni}' and `{active, _}' (see setopts/2).
%%
%% `{error, stream_limit}': as many are open as this node (`user_streams') or
%% the other one allows.
-spec open_stream(node(), [stream_opt()]) ->
          {ok, stream_ref()} | {error, error()}.
open_stream(Node, Opts) ->
    with_node(Node, fun(Conn) ->
                            case quic_dist_stream:open(Conn, self(), Opts) of
                                {ok, Id} -> {ok, {quic_dist_stream, Node, Id}};
                                {error, _} = Error -> Error
                            end
                    end).

%% @doc Sends data. Waits while more than `user_stream_queue' bytes are queued.
-spec send(stream_ref(), iodata()) -> ok | {error, error()}.
send(StreamRef, Data) ->
    send(StreamRef, Data, []).

%% @doc The same. `true': nothing comes after it. Or options: `fin',
%% `nosuspend' (`{error, busy}' in place of waiting) and `{timeout, Ms}':
%% `{error, timeout}' then means that nothing was taken, `{error, {timeout,
%% Rest}}' that all was but `Rest' (only where more than 1 MiB was given).
-spec send(stream_ref(), iodata(),
           Fin :: boolean() | [quic_dist_stream:send_opt()]) ->
          ok | {error, error() | busy | timeout | {timeout, binary()}}.
send(StreamRef, Data, Fin) when is_boolean(Fin) ->
    send(StreamRef, Data, [{fin, Fin}]);
send(StreamRef, Data, Opts) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_stream:send(Conn, Id, Data, Opts)
                           end).

%% @doc Receives from a passive stream (`{active, false}'): `Length' bytes (at most
%% 64 MiB, `einval' beyond), or with 0 what there is. At the end of what the peer sends fewer, then
%% `{error, closed}'.
-spec recv(stream_ref(), Length :: non_neg_integer()) ->
          {ok, binary()} | {error, error() | einval | ealready}.
recv(StreamRef, Length) ->
    case recv(StreamRef, Length, infinity) of
        {error, timeout} -> {error, closed};
        Result -> Result
    end.

%% @doc The same, for at most `Timeout' milliseconds. What came meanwhile is
%% there for the next call. `einval': the stream is not passive; `ealready':
%% another process receives from it.
-spec recv(stream_ref(), Length :: non_neg_integer(), timeout()) ->
          {ok, binary()} | {error, error() | timeout | einval | ealready}.
recv(StreamRef, Length, Timeout) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_stream:recv(Conn, Id, Length,
                                                         Timeout)
                           end).

%% @doc Finishes this side of the stream, after all that was sent. The other
%% side goes on until it finishes; then the owner gets `closed'. `ok' as well
%% where there is nothing to finish any more.
-spec close_stream(stream_ref()) -> ok | {error, error()}.
close_stream(StreamRef) ->
    with_stream(StreamRef, fun quic_dist_stream:close/2).

%% @doc Cancels the stream with code 0.
-spec reset_stream(stream_ref()) -> ok | {error, error()}.
reset_stream(StreamRef) ->
    reset_stream(StreamRef, 0).

%% @doc Cancels both directions at once; what has not arrived is lost. Both
%% owners get `{reset, Code}'. `Code': 0 to 2^62 - 1.
-spec reset_stream(stream_ref(), Code :: non_neg_integer()) ->
          ok | {error, error()}.
reset_stream(StreamRef, Code) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_stream:reset(Conn, Id, Code)
                           end).

%% @doc Sets a stream's priority, for what is sent on it from now on. As in
%% open_stream/2, the nearest of 16 to 255 is taken.
-spec set_priority(stream_ref(), 16..255) -> ok | {error, error()}.
set_priority(StreamRef, Priority) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_stream:set_priority(Conn, Id,
                                                                 Priority)
                           end).

%% @doc Makes the caller one of those who take turns in owning the streams that
%% a node opens, until it dies, stop_accepting/1, or the connection ends.
%% Without any, new streams are refused (`{reset, 16#100}').
-spec accept_streams(node()) -> ok | {error, error()}.
accept_streams(Node) ->
    accept_streams(Node, []).

%% @doc The same, with the mode in which it gets them: `{active, _}'. Of a passive
%% one (`{active, false}') it is told `{quic_dist_stream, StreamRef, passive}'.
-spec accept_streams(node(), [quic_dist_stream:active_opt()]) ->
          ok | {error, error()}.
accept_streams(Node, Opts) ->
    with_node(Node, fun(Conn) ->
                            quic_dist_stream:accept(Conn, self(), Opts)
                    end).

%% @doc The caller accepts no more streams of a node. It keeps those it has.
-spec stop_accepting(node()) -> ok | {error, error()}.
stop_accepting(Node) ->
    with_node(Node, fun(Conn) ->
                            quic_dist_stream:stop_accepting(Conn, self())
                    end).

%% @doc Gives a stream of the caller's to another process of this node, with
%% what of it the caller has not taken from its mailbox. If the new owner is
%% dead, it is as if it had died just afterwards: the stream is reset.
-spec controlling_process(stream_ref(), pid()) -> ok | {error, error()}.
controlling_process({quic_dist_stream, Node, _} = StreamRef, NewOwner) ->
    with_stream(StreamRef,
                fun(Conn, Id) ->
                        quic_dist_stream:controlling_process(Conn, Node, Id,
                                                             NewOwner)
                end).

%% @doc The streams of all connections.
-spec list_streams() -> [stream_info()].
list_streams() ->
    [Info || {Node, _, Conn} <- quic_dist_nodes:controllers(),
             Info <- quic_dist_stream:list(Conn, Node)].

%% @doc The streams of the connection to a node.
-spec list_streams(node()) -> [stream_info()].
list_streams(Node) ->
    case with_node(Node, fun(Conn) -> quic_dist_stream:list(Conn, Node) end) of
        {error, _} -> [];
        Streams -> Streams
    end.

%% @doc The controller of the connection to a node.
-spec get_controller(node()) ->
          {ok, pid()} | {error, not_connected | not_quic_connection}.
get_controller(Node) ->
    case quic_dist_nodes:connection(Node) of
        {ok, _Conn, Controller} -> {ok, Controller};
        {error, not_connected} -> {error, no_connection(Node)}
    end.

%%% Files

%% @doc Sends a file on a stream, without copying it through the caller's heap:
%% all of it, or from `{offset, Bytes}' on, or `{length, Bytes}' of it. With
%% `fin' nothing comes after it. Waits while the stream's queue is full, at most
%% `{timeout, Ms}' at a time. Only regular files can be sent.
%%
%% `{error, eof}': the file is shorter than `length', or became shorter. What was
%% sent of it has been sent; FIN has not.
-spec send_file(stream_ref(), file:name_all(), [quic_dist_file:send_opt()]) ->
          {ok, Sent :: non_neg_integer()} | {error, error() | quic_dist_file:error()}.
send_file(StreamRef, Path, Opts) ->
    send_file(StreamRef, Path, Opts, fun no_progress/2).

%% @doc The same, and calls `Progress(Done, Total)' after each piece, in bytes.
-spec send_file(stream_ref(), file:name_all(), [quic_dist_file:send_opt()],
                quic_dist_file:progress()) ->
          {ok, Sent :: non_neg_integer()} | {error, error() | quic_dist_file:error()}.
send_file(StreamRef, Path, Opts, Progress) when is_function(Progress, 2) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_file:send(Conn, Id, Path, Opts,
                                                       Progress)
                           end).

%% @doc Writes what a passive stream (`{active, false}') brings to a file, up to
%% the end of what the peer sends, or `{length, Bytes}' of it. With `{offset,
%% Bytes}' it goes behind that much of the file, in place of what was there.
%% Waits for data at most `{timeout, Ms}' at a time.
%%
%% `{error, eof}': the peer finished before `length'. Whatever the error, what
%% was received is in the file; before anything is, what was in it stays.
-spec recv_file(stream_ref(), file:name_all(), [quic_dist_file:recv_opt()]) ->
          {ok, Received :: non_neg_integer()}
        | {error, error() | quic_dist_file:error()}.
recv_file(StreamRef, Path, Opts) ->
    recv_file(StreamRef, Path, Opts, fun no_progress/2).

%% @doc The same, and calls `Progress(Done, Total)' after each piece; `Total' is
%% `unknown' without `length'.
-spec recv_file(stream_ref(), file:name_all(), [quic_dist_file:recv_opt()],
                quic_dist_file:progress()) ->
          {ok, Received :: non_neg_integer()}
        | {error, error() | quic_dist_file:error()}.
recv_file(StreamRef, Path, Opts, Progress) when is_function(Progress, 2) ->
    with_stream(StreamRef, fun(Conn, Id) ->
                                   quic_dist_file:recv(Conn, Id, Path, Opts,
                                                       Progress)
                           end).

no_progress(_Done, _Total) ->
    ok.

%%% Datagrams

%% @doc Sends, in one packet, what would rather be lost than late: at most
%% datagram_size/1 bytes (`{error, too_long}'). It arrives once, late or never,
%% in any order. When more is sent than the path takes, the oldest are lost.
-spec send_datagram(node(), iodata()) ->
          ok | {error, closed | too_long | not_connected | not_quic_connection}.
send_datagram(Node, Data) ->
    with_node(Node, fun(Conn) -> quic_dist_stream:send_datagram(Conn, Data) end).

%% @doc Makes the caller one of those who take turns in getting the datagrams of
%% a node: `{quic_dist_datagram, Node, Data}'. Without any, they are lost.
-spec accept_datagrams(node()) -> ok | {error, error()}.
accept_datagrams(Node) ->
    with_node(Node, fun(Conn) ->
                            quic_dist_stream:accept_datagrams(Conn, self())
                    end).

%% @doc The caller gets no more datagrams of a node.
-spec stop_accepting_datagrams(node()) -> ok | {error, error()}.
stop_accepting_datagrams(Node) ->
    with_node(Node, fun(Conn) ->
                            quic_dist_stream:stop_accepting_datagrams(Conn,
                                                                      self())
                    end).

%% @doc The longest datagram that can be sent to a node now, in bytes; it
%% follows the path's MTU (`mtu' in info/0).
-spec datagram_size(node()) ->
          {ok, non_neg_integer()}
        | {error, closed | not_connected | not_quic_connection}.
datagram_size(Node) ->
    with_node(Node, fun quic_dist_stream:datagram_size/1).

with_stream({quic_dist_stream, Node, Id}, Fun) ->
    with_node(Node, fun(Conn) -> Fun(Conn, Id) end).

with_node(Node, Fun) ->
    case quic_dist_nodes:connection(Node) of
        {ok, Conn, _Controller} -> Fun(Conn);
        {error, _} -> {error, no_connection(Node)}
    end.

%% Other carriers have a port (inet_tcp) or a process (inet_tls) there. One of
%% ours is about to be known, or has ended.
no_connection(Node) ->
    case lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)) of
        {Node, Port} when is_port(Port) -> not_quic_connection;
        {Node, Pid} when is_pid(Pid) ->
            case erlang:process_info(Pid, initial_call) of
                undefined -> not_connected;
                {initial_call, {quic_dist_controller, _, _}} -> not_connected;
                _ -> not_quic_connection
            end;
        _ -> not_connected
    end.
