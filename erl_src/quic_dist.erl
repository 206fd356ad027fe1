%% @doc The distribution carrier of `-proto_dist quic': QUIC over IPv4.
%%
%% What `net_kernel' calls; all of it is `quic_dist_carrier' with the family
%% `inet'. Besides, `info/0' for people.
-module(quic_dist).

-export([childspecs/0, select/1, address/0, address/1, listen/1, listen/2,
         accept/1, accept_connection/5, setup/5, close/1, is_node_name/1,
         setopts/2, getopts/2]).
-export([info/0]).

-include_lib("kernel/include/net_address.hrl").

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

%% @doc Sets socket options (`net_kernel:setopts/2'), as far as QUIC has them.
-spec setopts(term(), [{atom(), term()}]) -> ok | {error, term()}.
setopts(Handle, Opts) ->
    quic_dist_carrier:setopts(Handle, Opts).

%% @doc Reads socket options (`net_kernel:getopts/2'), as far as QUIC has them.
-spec getopts(term(), [atom()]) -> {ok, [{atom(), term()}]}.
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
