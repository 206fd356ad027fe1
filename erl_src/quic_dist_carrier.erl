%% @doc The carrier's part in setting up connections: everything that
%% `net_kernel' asks of `quic_dist' and `quic6_dist', for either family.
%%
%% Modelled on `inet_tcp_dist', so that the same parameters of `kernel' mean
%% the same. Options that only TCP has (`inet_dist_connect_options',
%% `inet_dist_listen_options', `dist_nodelay') have no effect.
-module(quic_dist_carrier).

-export([gen_childspecs/1, gen_select/2, gen_address/1, gen_address/2,
         gen_listen/3, gen_accept/1, gen_accept_connection/6, gen_setup/6,
         gen_close/1, is_node_name/1, setopts/2, getopts/2]).
-export([accept_loop/2, announce_loop/1, do_accept/7, do_setup/7,
         post_nodeup/1, address/2]).

-export_type([listen_handle/0, listen_result/0, incoming/0]).

-include_lib("kernel/include/net_address.hrl").
-include_lib("kernel/include/dist_util.hrl").

-type family() :: quic_dist_opts:family().
%% Tells enough to open the endpoint again.
-opaque listen_handle() :: {quic_dist_listen, family(), inet:ip_address(),
                            inet:port_number()}.
-type listen_result() ::
        {ok, {listen_handle(), #net_address{}, Creation :: integer()}}
      | {error, term()}.
-type incoming() :: {quic_dist_nif:connection(), quic_dist_nif:peer()}.

%% How long a failed acceptor waits before net_kernel starts the next.
-define(RETRY_MS, 500).

-record(acceptor, {kernel :: pid(),
                   family :: family(),
                   %% monitor of the endpoint server
                   server :: reference(),
                   %% peers announced to net_kernel, which has not answered yet
                   announced = queue:new() :: queue:queue(quic_dist_nif:peer()),
                   %% processes in the distribution handshake, and their peers
                   shaking = #{} :: #{pid() => {reference(),
                                                quic_dist_nif:peer()}}}).

%% @doc The supervisor to start under `net_sup'.
-spec gen_childspecs(family()) -> {ok, [supervisor:child_spec()]}.
gen_childspecs(Family) ->
    {ok, [quic_dist_sup:childspec(Family)]}.

%% @doc Whether a node's host has an address of the family.
-spec gen_select(family(), node()) -> boolean().
gen_select(Family, Node) ->
    case dist_util:split_node(Node) of
        {node, Name, Host} ->
            quic_dist_discovery:has_address(Family, Name, Host);
        _ ->
            false
    end.

%% @doc The kind of address, for a node that does not listen.
-spec gen_address(family()) -> #net_address{}.
gen_address(Family) ->
    {ok, Host} = inet:gethostname(),
    gen_address(Family, Host).

%% @doc The same, of a given host. A node that does not listen opens its
%% endpoint when it first dials: this is where its start can still be stopped.
-spec gen_address(family(), string()) -> #net_address{}.
gen_address(Family, Host) ->
    case quic_dist_opts:limits() of
        {ok, _} ->
            #net_address{host = Host, protocol = quic, family = Family};
        {error, Bad} ->
            quic_dist_log:log(error, "quic_dist: ~ts",
                              [quic_dist_log:reason(Bad)]),
            error(Bad)
    end.

%%% Listening

%% @doc Opens the endpoint and registers its port with EPMD.
-spec gen_listen(family(), atom(), string()) -> listen_result().
gen_listen(Family, Name, Host) ->
    case quic_dist_opts:interface(Family) of
        {ok, Ip} ->
            case listen_ports(Family, Name, Host) of
                {ok, Ports} -> listen(Family, Name, Host, Ip, Ports);
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

listen(Family, Name, Host, Ip, Ports) ->
    Node = list_to_atom(atom_to_list(Name) ++ "@" ++ Host),
    case quic_dist_endpoint:listen(Family, Node, Ip, Ports) of
        {ok, Port} ->
            case register_node(Family, Name, Port) of
                {ok, Creation} ->
                    {ok, {{quic_dist_listen, Family, Ip, Port},
                          #net_address{address = {Ip, Port}, host = Host,
                                       protocol = quic, family = Family},
                          Creation}};
                Error ->
                    ok = quic_dist_endpoint:close(Family),
                    Error
            end;
        {error, _} = Error ->
            Error
    end.

%% EPMD knows one port of a node: with `-proto_dist quic quic6' the second
%% family listens on the port of the first.
listen_ports(Family, Name, Host) ->
    case quic_dist_endpoint:listen_port(other(Family)) of
        {ok, Port} ->
            {ok, {Port, Port}};
        none ->
            case quic_dist_discovery:epmd(listen_port_please, [Name, Host]) of
                {ok, 0} -> quic_dist_opts:ports();
                {ok, Port} -> {ok, {Port, Port}}
            end
    end.

register_node(Family, Name, Port) ->
    case quic_dist_endpoint:listen_port(other(Family)) of
        {ok, Port} -> {ok, erlang:system_info(creation)};
        none -> (net_kernel:epmd_module()):register_node(Name, Port, Family)
    end.

other(inet) -> inet6;
other(inet6) -> inet.

%% @doc Closes what gen_listen/3 opened.
-spec gen_close(listen_handle()) -> ok.
gen_close({quic_dist_listen, Family, _Ip, _Port}) ->
    quic_dist_endpoint:close(Family).

%%% Accepting

%% @doc Starts the acceptor, linked to the caller: `net_kernel', which starts
%% another when it ends.
-spec gen_accept(listen_handle()) -> pid().
gen_accept(Listen) ->
    spawn_opt(?MODULE, accept_loop, [self(), Listen], [link, {priority, max}]).

%% The acceptor only announces: it waits for nothing that a peer does, so no
%% peer can hold another up. The process of do_accept/7 does the work.
%% @private
-spec accept_loop(pid(), listen_handle()) -> no_return().
accept_loop(Kernel, {quic_dist_listen, Family, Ip, Port}) ->
    try quic_dist_endpoint:attach(Family, Ip, Port) of
        {ok, Server} ->
            Monitor = erlang:monitor(process, Server),
            announce_loop(#acceptor{kernel = Kernel, family = Family,
                                    server = Monitor});
        {error, Reason} ->
            quic_dist_log:log(error, "quic_dist: cannot listen on ~ts: ~ts",
                              [quic_dist_log:peer({Ip, Port}),
                               quic_dist_log:reason(Reason)]),
            retry_later(Reason)
    catch
        exit:Reason -> retry_later(Reason)
    end.

-spec retry_later(term()) -> no_return().
retry_later(Reason) ->
    receive after ?RETRY_MS -> exit({listen, Reason}) end.

%% @private
-spec announce_loop(#acceptor{}) -> no_return().
announce_loop(#acceptor{kernel = Kernel, server = Server} = State) ->
    receive
        {quic_dist_accept, Conn, Peer} ->
            Kernel ! {accept, self(), {Conn, Peer}, State#acceptor.family, quic},
            Announced = queue:in(Peer, State#acceptor.announced),
            ?MODULE:announce_loop(State#acceptor{announced = Announced});
        {Kernel, controller, Pid} ->
            Pid ! {self(), controller},
            ?MODULE:announce_loop(shaking_hands(Pid, State));
        {quic_dist_up, Pid} ->
            ?MODULE:announce_loop(shaken(Pid, State));
        {'DOWN', Server, process, _, Reason} ->
            exit({endpoint, Reason});
        {'DOWN', _, process, Pid, Reason} ->
            ?MODULE:announce_loop(not_shaken(Pid, Reason, State));
        {Kernel, unsupported_protocol} ->
            exit(unsupported_protocol)
    end.

%% net_kernel answers announcements in their order.
shaking_hands(Pid, #acceptor{announced = Announced, shaking = Shaking} = State) ->
    {{value, Peer}, Rest} = queue:out(Announced),
    Monitor = erlang:monitor(process, Pid),
    State#acceptor{announced = Rest, shaking = Shaking#{Pid => {Monitor, Peer}}}.

shaken(Pid, #acceptor{shaking = Shaking} = State) ->
    {{Monitor, _Peer}, Rest} = maps:take(Pid, Shaking),
    erlang:demonitor(Monitor, [flush]),
    State#acceptor{shaking = Rest}.

%% dist_util is silent about most of what a peer can do wrong.
not_shaken(Pid, Reason, #acceptor{shaking = Shaking} = State) ->
    {{_Monitor, Peer}, Rest} = maps:take(Pid, Shaking),
    quic_dist_log:not_shaken(Peer, Reason),
    State#acceptor{shaking = Rest}.

%% @doc Starts the process that shakes hands on an incoming connection.
-spec gen_accept_connection(family(), pid(), incoming(), node(), list(),
                            non_neg_integer()) -> pid().
gen_accept_connection(Family, AcceptPid, Incoming, MyNode, Allowed, SetupTime) ->
    spawn_opt(?MODULE, do_accept,
              [self(), Family, AcceptPid, Incoming, MyNode, Allowed, SetupTime],
              dist_util:net_ticker_spawn_options()).

%% @private
-spec do_accept(pid(), family(), pid(), incoming(), node(), list(),
                non_neg_integer()) -> no_return().
do_accept(Kernel, Family, AcceptPid, {Conn, {Ip, _} = Peer}, MyNode, Allowed,
          SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    receive {AcceptPid, controller} -> ok end,
    Allow = check_peer(Conn, Ip, Peer, Allowed),
    Controller =
        case start_controller(Conn, Family, Peer, Kernel, undefined) of
            {ok, Pid} -> Pid;
            {error, closed} -> ?shutdown2(no_node, connection_setup_failed)
        end,
    ok = check_name(Controller, Conn, Peer, Allow),
    %% It is called by this process, and not kept.
    Up = fun(_) -> AcceptPid ! {quic_dist_up, self()}, ok end,
    dist_util:handshake_other_started(
      (hs_data(Controller))#hs_data{kernel_pid = Kernel,
                                    this_node = MyNode,
                                    timer = Timer,
                                    this_flags = 0,
                                    allowed = Allowed,
                                    f_setopts_post_nodeup = Up}).

%% Who may not connect is told nothing: by its address, and by its certificate
%% where that is verified.
check_peer(Conn, Ip, Peer, Allowed) ->
    check_ip(Ip) orelse refuse(Conn, Peer, "its IP address is not allowed",
                               <<"disallowed IP">>),
    {ok, Allow} = quic_dist_trust:allow(),
    (may(Conn, Allow) andalso may_node(Conn, Allowed))
        orelse refuse(Conn, Peer,
                      ["its certificate, of ", certificate(Conn), ", is that of "
                       "no node that is allowed"], <<"not allowed">>),
    Allow.

%% Hosts and nodes may be in the list.
may(_Conn, all) ->
    true;
may(Conn, Allow) ->
    lists:any(fun(Name) -> quic_dist_nif:peer_is(Conn, at(Name)) =/= false end,
              Allow).

at(Name) ->
    case binary:match(Name, <<"@">>) of
        nomatch -> <<"@", Name/binary>>;
        _ -> Name
    end.

%% net_kernel:allow/1. dist_util asks it again, of the name in the handshake.
may_node(_Conn, []) ->
    true;
may_node(Conn, Allowed) ->
    lists:any(fun(Node) ->
                      quic_dist_nif:peer_is(Conn, atom_to_binary(Node)) =/= false
              end, Allowed).

%% The node is the one that its certificate names, or the distribution handshake
%% does not begin. dist_util has not seen its name yet.
check_name(Controller, Conn, Peer, Allow) ->
    Said = case quic_dist_controller:first_message(Controller) of
               {ok, Message} -> quic_dist_trust:says_it_is(Message);
               %% dist_util meets the end too.
               {error, closed} -> {error, closed}
           end,
    case Said of
        {ok, Name} ->
            case quic_dist_nif:peer_is(Conn, Name) of
                false ->
                    refuse(Conn, Peer,
                           ["it says that it is ", printable(Name),
                            ", and its certificate is that of ",
                            certificate(Conn)], <<"not your name">>);
                Is ->
                    Is =:= unknown andalso quic_dist_log:unverified(Name, Peer),
                    %% Of all that its certificate is good for, this counts.
                    quic_dist_trust:allows(Allow, Name)
                        orelse refuse(Conn, Peer, [printable(Name),
                                                   " is not allowed"],
                                      <<"not allowed">>),
                    ok
            end;
        {error, closed} ->
            ok;
        {error, not_in_the_protocol} ->
            refuse(Conn, Peer, "its first message does not name it",
                   <<"no name">>)
    end.

certificate(Conn) ->
    case quic_dist_nif:peer_certificate(Conn) of
        unknown -> "nobody that is known";
        Whose -> Whose
    end.

%% A name from the network: bounded, and one line.
printable(Name) ->
    Chars = unicode:characters_to_list(Name),
    [case C of
         _ when C < 32; C >= 127, C < 160 -> $.;
         _ -> C
     end || C <- lists:sublist(Chars, 255)].

-spec refuse(quic_dist_nif:connection(), quic_dist_nif:peer(),
             unicode:chardata(), binary()) -> no_return().
refuse(Conn, Peer, Why, Word) ->
    quic_dist_log:log(error, "quic_dist: refused a connection from ~ts: ~ts",
                      [quic_dist_log:peer(Peer), Why]),
    ok = quic_dist_nif:close(Conn, Word),
    ?shutdown(no_node).

%%% Dialling

%% @doc Starts the process that dials a node, and then is its tick loop.
-spec gen_setup(family(), node(), normal | hidden, node(),
                longnames | shortnames, non_neg_integer()) -> pid().
gen_setup(Family, Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    spawn_opt(?MODULE, do_setup,
              [self(), Family, Node, Type, MyNode, LongOrShortNames, SetupTime],
              dist_util:net_ticker_spawn_options()).

%% This process never traps exits: of two nodes that dial each other, one has
%% its net_kernel kill this process, and wait for its end. The links take the
%% controller, and the engine the connection, along.
%% @private
-spec do_setup(pid(), family(), node(), normal | hidden, node(),
               longnames | shortnames, non_neg_integer()) -> no_return().
do_setup(Kernel, Family, Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    ok = check_allowed(Node),
    {Peer, Version} = find(Family, Node, LongOrShortNames),
    dist_util:reset_timer(Timer),
    Conn = dial(Family, Node, Peer),
    Controller =
        case start_controller(Conn, Family, Peer, Kernel, Node) of
            {ok, Pid} -> Pid;
            {error, closed} -> closed_at_once(Conn, Node, Peer)
        end,
    dist_util:handshake_we_started(
      (hs_data(Controller))#hs_data{kernel_pid = Kernel,
                                    other_node = Node,
                                    this_node = MyNode,
                                    timer = Timer,
                                    this_flags = 0,
                                    other_version = Version,
                                    request_type = Type}).

check_allowed(Node) ->
    {ok, Allow} = quic_dist_trust:allow(),
    case quic_dist_trust:allows(Allow, atom_to_binary(Node)) of
        true ->
            ok;
        false ->
            quic_dist_log:log(error, "quic_dist: ~ts is not allowed",
                              [atom_to_list(Node)]),
            ?shutdown(Node)
    end.

find(Family, Node, LongOrShortNames) ->
    {Name, Host} = split_node(Family, Node, LongOrShortNames),
    case quic_dist_discovery:find(Family, Name, Host) of
        {ok, Peer, Version} -> {Peer, Version};
        error -> ?shutdown(Node)
    end.

dial(Family, Node, Peer) ->
    case quic_dist_endpoint:dial(Family, Node) of
        {ok, Endpoint, Identity} ->
            case quic_dist_nif:connect(Endpoint, Peer, atom_to_binary(Node),
                                       Identity, self()) of
                {ok, Conn} -> await_connected(Conn, Node, Peer);
                {error, Reason} -> dial_failed(error, Node, Peer, Reason)
            end;
        {error, Reason} ->
            dial_failed(error, Node, Peer, Reason)
    end.

%% The setup timer bounds the wait.
await_connected(Conn, Node, Peer) ->
    receive
        {quic_dist, Conn, connected} ->
            %% The engine has compared its certificate with the node's name.
            quic_dist_nif:peer_is(Conn, atom_to_binary(Node)) =:= unknown
                andalso quic_dist_log:unverified(atom_to_binary(Node), Peer),
            Conn;
        {quic_dist, Conn, {closed, Reason}} ->
            dial_ended(Node, Peer, Reason)
    end.

%% In TLS 1.3 who dials is done before the other one has looked at his
%% certificate. Why it has ended has been told to this process, or will be in a
%% moment; the time is for what the controller was told.
-spec closed_at_once(quic_dist_nif:connection(), node(),
                     quic_dist_nif:peer()) -> no_return().
closed_at_once(Conn, Node, Peer) ->
    receive
        {quic_dist, Conn, {closed, Reason}} -> dial_ended(Node, Peer, Reason)
    after 1000 ->
        ?shutdown2(Node, connection_setup_failed)
    end.

-spec dial_ended(node(), quic_dist_nif:peer(), quic_dist_nif:close_reason()) ->
          no_return().
dial_ended(Node, Peer, {tls, _} = Reason) ->
    dial_failed(error, Node, Peer, Reason);
dial_ended(Node, Peer, {io, Posix} = Reason) when Posix =:= emfile; Posix =:= enfile ->
    %% Of this node, and not of the peer.
    dial_failed(error, Node, Peer, Reason);
dial_ended(Node, Peer, Reason) ->
    %% Usually a node that has just gone: as on TCP, no news.
    dial_failed(info, Node, Peer, Reason).

-spec dial_failed(logger:level(), node(), quic_dist_nif:peer(), term()) ->
          no_return().
dial_failed(Level, Node, Peer, Reason) ->
    quic_dist_log:log(Level, "quic_dist: cannot connect to ~ts at ~ts: ~ts",
                      [atom_to_list(Node), quic_dist_log:peer(Peer),
                       quic_dist_log:reason(Reason)]),
    ?shutdown2(Node, {connect_failed, Reason}).

%%% The handshake of dist_util

start_controller(Conn, Family, Peer, Kernel, Node) ->
    case quic_dist_controller:start_link(Conn, Family, Peer, Node) of
        {ok, Controller} ->
            ok = quic_dist_controller:set_supervisor(Controller, Kernel),
            {ok, Controller};
        {error, closed} = Error ->
            Error
    end.

%% These funs stay with the connection: they name exported functions, so that
%% the connection survives any number of upgrades of this module.
hs_data(Controller) ->
    #hs_data{socket = Controller,
             f_send = fun quic_dist_controller:send/2,
             f_recv = fun quic_dist_controller:recv/3,
             f_setopts_pre_nodeup = fun quic_dist_controller:pre_nodeup/1,
             f_setopts_post_nodeup = fun ?MODULE:post_nodeup/1,
             f_getll = fun quic_dist_controller:getll/1,
             f_address = fun ?MODULE:address/2,
             f_handshake_complete =
                 fun quic_dist_controller:handshake_complete/3,
             mf_tick = fun quic_dist_controller:tick/1,
             mf_getstat = fun quic_dist_controller:getstat/1,
             mf_setopts = fun quic_dist:setopts/2,
             mf_getopts = fun quic_dist:getopts/2,
             %% A VM without an atom cache takes it on trust that nobody
             %% refers to it (OTP 25 to 27 crash): so every one has it.
             require_flags = dist_util:strict_order_flags()}.

%% @private
-spec post_nodeup(pid()) -> ok.
post_nodeup(_Controller) ->
    ok.

%% @private
-spec address(pid(), node()) -> #net_address{}.
address(Controller, Node) ->
    case {quic_dist_controller:get_address(Controller, Node),
          quic_dist_controller:set_node(Controller, Node)} of
        {{ok, Address}, ok} -> Address;
        _ -> ?shutdown(Node)
    end.

%%% Options of an existing connection, or of the listener

%% @doc `nodelay' is always on and may be set either way, as on an `inet_tcp'
%% connection; a UDP endpoint that many connections share has no other option.
-spec setopts(term(), [{atom(), term()}]) -> ok | {error, term()}.
setopts(_Handle, Opts) ->
    case [Opt || Opt <- Opts, not is_nodelay(Opt)] of
        [] -> ok;
        Bad -> {error, {badopts, Bad}}
    end.

is_nodelay({nodelay, Value}) -> is_boolean(Value);
is_nodelay(_) -> false.

%% @doc The values of the options that exist, as `inet:getopts/2' does it.
-spec getopts(term(), [atom()]) -> {ok, [{atom(), term()}]}.
getopts(_Handle, Opts) ->
    {ok, [{nodelay, true} || nodelay <- Opts]}.

%%% Names and addresses

%% @doc Whether a term is the name of a node.
-spec is_node_name(term()) -> boolean().
is_node_name(Node) when is_atom(Node) ->
    dist_util:is_node_name(atom_to_list(Node));
is_node_name(_) ->
    false.

split_node(Family, Node, LongOrShortNames) ->
    case dist_util:split_node(Node) of
        {node, Name, Host} ->
            case is_host_allowed(Family, Host, LongOrShortNames) of
                true ->
                    {Name, Host};
                false ->
                    quic_dist_log:log(
                      error, "quic_dist: this node uses ~w: the host name ~ts "
                      "is illegal", [LongOrShortNames, Host]),
                    ?shutdown(Node)
            end;
        _ ->
            quic_dist_log:log(error, "quic_dist: illegal node name ~tw", [Node]),
            ?shutdown(Node)
    end.

is_host_allowed(Family, Host, LongOrShortNames) ->
    case {lists:member($., Host), LongOrShortNames} of
        {false, longnames} ->
            %% An IPv6 address has no dot.
            case Family of
                inet -> inet:parse_ipv4strict_address(Host);
                inet6 -> inet:parse_ipv6strict_address(Host)
            end =/= {error, einval};
        {true, shortnames} ->
            false;
        _ ->
            true
    end.

%% With the kernel parameter check_ip, only nodes in a network of one of this
%% host's interfaces may connect.
check_ip(Ip) ->
    case application:get_env(kernel, check_ip) of
        {ok, true} ->
            {ok, Interfaces} = inet:getifaddrs(),
            lists:any(fun({Own, Mask}) ->
                              tuple_size(Own) =:= tuple_size(Ip)
                                  andalso network(Own, Mask) =:= network(Ip, Mask)
                      end, lists:append([addresses(Opts)
                                         || {_Name, Opts} <- Interfaces]));
        _ ->
            true
    end.

addresses([{addr, Own}, {netmask, Mask} | Opts]) ->
    [{Own, Mask} | addresses(Opts)];
addresses([_ | Opts]) ->
    addresses(Opts);
addresses([]) ->
    [].

network(Ip, Mask) ->
    lists:zipwith(fun(Part, Bits) -> Part band Bits end,
                  tuple_to_list(Ip), tuple_to_list(Mask)).
