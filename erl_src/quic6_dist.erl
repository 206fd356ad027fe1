%% @doc The distribution carrier of `-proto_dist quic6': QUIC over IPv6.
%%
%% What `net_kernel' calls; all of it is `quic_dist_carrier' with the family
%% `inet6'.
-module(quic6_dist).

-export([childspecs/0, select/1, address/0, address/1, listen/1, listen/2,
         accept/1, accept_connection/5, setup/5, close/1, is_node_name/1,
         setopts/2, getopts/2]).

-include_lib("kernel/include/net_address.hrl").

%% @doc The processes that run under `net_sup' before `net_kernel'.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    quic_dist_carrier:gen_childspecs(inet6).

%% @doc Whether this carrier can reach a node of that name.
-spec select(node()) -> boolean().
select(Node) ->
    quic_dist_carrier:gen_select(inet6, Node).

%% @doc The kind of address this carrier uses, for a node that does not listen.
-spec address() -> #net_address{}.
address() ->
    quic_dist_carrier:gen_address(inet6).

%% @doc The same; OTP 28 gives the host part of the node's name.
-spec address(string()) -> #net_address{}.
address(Host) ->
    quic_dist_carrier:gen_address(inet6, Host).

%% @doc Listens, and registers with EPMD.
-spec listen(atom()) -> quic_dist_carrier:listen_result().
listen(Name) ->
    {ok, Host} = inet:gethostname(),
    listen(Name, Host).

%% @doc Listens, and registers with EPMD.
-spec listen(atom(), string()) -> quic_dist_carrier:listen_result().
listen(Name, Host) ->
    quic_dist_carrier:gen_listen(inet6, Name, Host).

%% @doc Starts the process that tells `net_kernel' of incoming connections.
-spec accept(quic_dist_carrier:listen_handle()) -> pid().
accept(Listen) ->
    quic_dist_carrier:gen_accept(Listen).

%% @doc Starts the process that shakes hands on an incoming connection.
-spec accept_connection(pid(), quic_dist_carrier:incoming(), node(), list(),
                        non_neg_integer()) -> pid().
accept_connection(AcceptPid, Incoming, MyNode, Allowed, SetupTime) ->
    quic_dist_carrier:gen_accept_connection(inet6, AcceptPid, Incoming, MyNode,
                                            Allowed, SetupTime).

%% @doc Starts the process that dials a node.
-spec setup(node(), normal | hidden, node(), longnames | shortnames,
            non_neg_integer()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    quic_dist_carrier:gen_setup(inet6, Node, Type, MyNode, LongOrShortNames,
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
