%% Nodes find each other and form clusters in every way that users start them: of 2, 3 and 5, hidden, with dynamic names, long
%% and short, over IPv6, started by `peer` and `slave`, distributed after boot, remote shells, and dialled from both ends at once.
-module(cluster_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([two/1, three/1, five/1, hidden/1, dist_auto_connect_never/1, dynamic_name/1, short_names/1, ipv6/1,
         restart_same_name/1, restart_after_kill/1, start_after_boot/1, peer_child/1, slave_child/1, remote_shell/1,
         init_stop/1, init_restart/1, listen_range/1, interface/1, simultaneous_connect/1]).
%% run on the nodes
-export([connect_at/2]).

-define(LIB, quic_dist_test_lib).
-define(SIMULTANEOUS, 200).

suite() -> [{timetrap, {seconds, 180}}].

all() ->
    [two, three, five, hidden, dist_auto_connect_never, dynamic_name, short_names, ipv6,
     restart_same_name, restart_after_kill, start_after_boot, peer_child, slave_child, remote_shell,
     init_stop, init_restart, listen_range, interface, simultaneous_connect].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% Meshes

two(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "b"}]),
    NodeB = ?LIB:node(B),
    pong = ?LIB:call(A, net_adm, ping, [NodeB]),
    ?LIB:await_connected(A, B),
    rpc_each_way([A, B]),
    %% the carrier is the one under test, not one that happened to work
    Module = list_to_atom(atom_to_list(?LIB:carrier()) ++ "_dist"),
    IsController = case ?LIB:carrier() of quic -> fun is_pid/1; inet_tcp -> fun is_port/1 end,
    [begin
         true = ?LIB:call(H, erlang, module_loaded, [Module]),
         [{_, Controller}] = ?LIB:call(H, erlang, system_info, [dist_ctrl]),
         true = IsController(Controller)
     end || H <- [A, B]],
    ok.

three(_Config) -> mesh(3).

five(_Config) -> mesh(5).

%% Every node dials the first one only; `global` makes the mesh.
mesh(Count) ->
    [First | Rest] = Handles = ?LIB:start_all([#{tag => integer_to_list(I)} || I <- lists:seq(1, Count)]),
    [?LIB:connect(H, First) || H <- Rest],
    ?LIB:await_mesh(Handles),
    rpc_each_way(Handles),
    %% one leaves; the others see it and stay together
    [Last | Stay] = lists:reverse(Handles),
    0 = ?LIB:stop(Last),
    ?LIB:await_mesh(Stay),
    rpc_each_way(Stay).

rpc_each_way(Handles) ->
    Nodes = [?LIB:node(H) || H <- Handles],
    [Node = ?LIB:call(H, erpc, call, [Node, erlang, node, [], 10000]) || H <- Handles, Node <- Nodes],
    ok.

hidden(_Config) ->
    [A, B, H] = ?LIB:start_all([#{tag => "a"}, #{tag => "b"}, #{tag => "hidden", args => ["-hidden"]}]),
    [NodeA, NodeB, NodeH] = [?LIB:node(X) || X <- [A, B, H]],
    ?LIB:connect(A, B),
    ?LIB:connect(H, A),
    [] = ?LIB:call(H, erlang, nodes, []),
    [NodeA] = ?LIB:call(H, erlang, nodes, [hidden]),
    [NodeH] = ?LIB:call(A, erlang, nodes, [hidden]),
    [NodeB] = ?LIB:call(A, erlang, nodes, []),
    %% a hidden node works both ways, and the others do not hear of it
    NodeH = ?LIB:call(A, erpc, call, [NodeH, erlang, node, [], 10000]),
    NodeA = ?LIB:call(H, erpc, call, [NodeA, erlang, node, [], 10000]),
    [NodeA] = ?LIB:call(B, erlang, nodes, [connected]).

dist_auto_connect_never(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "never", args => ["-kernel", "dist_auto_connect", "never"]}, #{tag => "b"}]),
    NodeB = ?LIB:node(B),
    {badrpc, nodedown} = ?LIB:call(A, rpc, call, [NodeB, erlang, node, []]),
    [] = ?LIB:call(A, erlang, nodes, []),
    ?LIB:connect(A, B),
    NodeB = ?LIB:call(A, rpc, call, [NodeB, erlang, node, []]).

%% `-sname undefined`: the first node that it connects to gives it its name.
dynamic_name(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "dyn", naming => sname, name => "undefined"},
                             #{tag => "b", naming => sname, name => short_name("b")}]),
    NodeB = ?LIB:node(B),
    nonode@nohost = ?LIB:node(A),
    true = ?LIB:call(A, net_kernel, connect_node, [NodeB]),
    ?LIB:await_connected(A, B),
    NodeA = ?LIB:node(A),
    true = NodeA =/= nonode@nohost,
    NodeA = ?LIB:call(B, erpc, call, [NodeA, erlang, node, [], 10000]),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
    %% it loses its name with its last connection, and can have another
    true = ?LIB:call(A, erlang, disconnect_node, [NodeB]),
    ?LIB:wait_until(fun() -> ?LIB:node(A) =:= nonode@nohost end, 10000),
    ?LIB:await_alone(B),
    ?LIB:connect(A, B),
    pong = ?LIB:call(B, net_adm, ping, [?LIB:node(A)]).

short_name(Tag) -> hd(string:lexemes(?LIB:name(Tag), "@")).

short_names(_Config) ->
    [A, B] = ?LIB:start_all([#{naming => sname, name => short_name(Tag)} || Tag <- ["a", "b"]]),
    ?LIB:connect(A, B),
    rpc_each_way([A, B]).

ipv6(_Config) ->
    Carrier = case ?LIB:carrier() of quic -> "quic6"; inet_tcp -> "inet6_tcp" end,
    [A, B] = ?LIB:start_all([#{carrier => Carrier, name => short_name(Tag) ++ "@::1"} || Tag <- ["a", "b"]]),
    ?LIB:connect(A, B),
    rpc_each_way([A, B]),
    ?LIB:disconnect(B, A),
    ?LIB:connect(B, A),
    rpc_each_way([A, B]).

%%% Nodes that come and go

restart_same_name(_Config) ->
    Name = ?LIB:name("again"),
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{name => Name}]),
    ?LIB:connect(A, B),
    [begin
         Old = ?LIB:call(A, erpc, call, [list_to_atom(Name), erlang, whereis, [init]]),
         B2 = restart(A, Generation, Name),
         %% the pid of the node's earlier life is not the pid of this one, though the name and the number are the same
         New = ?LIB:call(A, erpc, call, [list_to_atom(Name), erlang, whereis, [init]]),
         true = Old =/= New,
         rpc_each_way([A, B2]),
         B2
     end || Generation <- [B, find]],
    ok.

restart(A, Generation, Name) ->
    %% stopped by whoever reaches it: the handle, or (the second time) an rpc
    case Generation of
        find -> ok = ?LIB:call(A, erpc, cast, [list_to_atom(Name), init, stop, []]);
        Handle -> 0 = ?LIB:stop(Handle)
    end,
    ?LIB:await_alone(A),
    ?LIB:wait_until(fun() -> ?LIB:call(A, erl_epmd, port_please, [hd(string:lexemes(Name, "@")), {127, 0, 0, 1}]) =:= noport end, 10000),
    B2 = ?LIB:start(#{name => Name}),
    ?LIB:connect(A, B2),
    B2.

%% The node is back, and dials, before the other end knows that it was gone.
restart_after_kill(_Config) ->
    Name = ?LIB:name("killed"),
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{name => Name}]),
    ?LIB:connect(A, B),
    ?LIB:kill(B),
    B2 = ?LIB:start(#{name => Name}),
    ?LIB:connect(B2, A),
    rpc_each_way([A, B2]).

start_after_boot(_Config) ->
    [A, B] = ?LIB:start_all([#{naming => none, tag => "late"}, #{tag => "b"}]),
    NodeB = ?LIB:node(B),
    false = ?LIB:call(A, erlang, is_alive, []),
    Name1 = list_to_atom(?LIB:name("first")),
    {ok, _} = ?LIB:call(A, net_kernel, start, [[Name1, longnames]]),
    Name1 = ?LIB:node(A),
    ?LIB:connect(A, B),
    rpc_each_way([A, B]),
    {Threads, Fds} = {?LIB:threads(A), ?LIB:fds(A)},
    stop_distribution(A, B),
    %% and again, by the other function, under another name, more than once
    [begin
         Name = list_to_atom(?LIB:name("later")),
         {ok, _} = ?LIB:call(A, net_kernel, start, [Name, #{name_domain => longnames}]),
         Name = ?LIB:node(A),
         NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
         Name = ?LIB:call(B, erpc, call, [Name, erlang, node, [], 10000]),
         I =:= 5 orelse stop_distribution(A, B)
     end || I <- lists:seq(1, 5)],
    %% what an endpoint had goes with its thread, soon
    ?LIB:wait_until({threads_fds, Threads, Fds}, fun() -> ?LIB:threads(A) =< Threads andalso ?LIB:fds(A) =< Fds end, 10000).

stop_distribution(A, B) ->
    ok = ?LIB:call(A, net_kernel, stop, []),
    %% the VM takes the name away when net_kernel has ended, which may be a moment after it is known to have
    ?LIB:wait_until(no_name, fun() -> ?LIB:node(A) =:= nonode@nohost end, 10000),
    ?LIB:await_alone(B).

%%% Nodes started by nodes

peer_child(_Config) ->
    A = ?LIB:start(#{tag => "parent"}),
    Child = short_name("peer"),
    Args = ["-setcookie", ?LIB:cookie() | ?LIB:carrier_args()],
    {ok, Peer, Node} = ?LIB:call(A, peer, start, [#{name => Child, host => "127.0.0.1", longnames => true, args => Args}]),
    [Node] = ?LIB:call(A, erlang, nodes, []),
    Node = ?LIB:call(A, erpc, call, [Node, erlang, node, []]),
    OsPid = ?LIB:call(A, erpc, call, [Node, os, getpid, []]),
    ok = ?LIB:call(A, peer, stop, [Peer]),
    ?LIB:await_alone(A),
    ?LIB:wait_until(fun() -> not filelib:is_dir("/proc/" ++ OsPid) end, 10000).

slave_child(_Config) ->
    A = ?LIB:start(#{tag => "master"}),
    Args = lists:flatten(lists:join(" ", ["-setcookie", ?LIB:cookie() | ?LIB:carrier_args()])),
    {ok, Node} = ?LIB:call(A, slave, start, ["127.0.0.1", list_to_atom(short_name("slave")), Args], 40000),
    [Node] = ?LIB:call(A, erlang, nodes, []),
    OsPid = ?LIB:call(A, erpc, call, [Node, os, getpid, []]),
    ok = ?LIB:call(A, slave, stop, [Node]),
    ?LIB:await_alone(A),
    ?LIB:wait_until(fun() -> not filelib:is_dir("/proc/" ++ OsPid) end, 10000).

%% A person's remote shell: `erl -remsh` in a terminal (script(1) makes one), an expression typed, its value read back.
remote_shell(_Config) ->
    A = ?LIB:start(#{tag => "a", naming => sname, name => short_name("a")}),
    Node = atom_to_list(?LIB:node(A)),
    Shell = lists:join(" ", [?LIB:erl(), "-sname", "undefined", "-remsh", Node, "-setcookie", ?LIB:cookie() | ?LIB:carrier_args()]),
    Port = open_port({spawn_executable, os:find_executable("script")},
                     [binary, exit_status, stderr_to_stdout, {env, [{"TERM", "vt100"}]},
                      {args, ["-qefc", lists:flatten(Shell), "/dev/null"]}]),
    {os_pid, Script} = erlang:port_info(Port, os_pid),
    try
        Prompt = await_text(Port, "\\(" ++ Node ++ "\\)1>", <<>>),
        port_command(Port, "{answer, node(), 6 * 7}.\n"),
        _ = await_text(Port, "\\{answer, *'?" ++ Node ++ "'?, *42\\}", Prompt),
        [Remote] = ?LIB:call(A, erlang, nodes, [hidden]),
        OsPid = ?LIB:call(A, erpc, call, [Remote, os, getpid, []]),
        %% ^G q: the shell ends, its node halts, and this node is not touched
        port_command(Port, "\^G"),
        _ = await_text(Port, "-->", <<>>),
        port_command(Port, "q\r"),
        ?LIB:wait_until(shell_gone, fun() -> not filelib:is_dir("/proc/" ++ OsPid) end, 10000),
        ?LIB:wait_until(fun() -> ?LIB:call(A, erlang, nodes, [hidden]) =:= [] end, 10000)
    after
        %% a shell that still runs gets a hang-up when its terminal goes
        _ = os:cmd("kill -KILL " ++ integer_to_list(Script)),
        catch port_close(Port)
    end.

await_text(Port, Pattern, Seen) ->
    case re:run(Seen, Pattern) of
        {match, _} -> Seen;
        nomatch ->
            receive
                {Port, {data, Data}} -> await_text(Port, Pattern, <<Seen/binary, Data/binary>>);
                {Port, {exit_status, Status}} -> ct:fail({shell_exit, Status, Seen})
            after 20000 -> ct:fail({shell_silent, Pattern, Seen})
            end
    end.

init_stop(_Config) ->
    [A, B, C] = ?LIB:start_all([#{tag => T} || T <- ["a", "b", "c"]]),
    ?LIB:connect(A, B),
    ?LIB:connect(C, A),
    ?LIB:await_mesh([A, B, C]),
    0 = ?LIB:stop(B),
    %% the others hear of it from B, long before any tick would tell them
    Stopped = quic_dist_test_clock:now_ms(),
    ?LIB:await_mesh([A, C]),
    true = quic_dist_test_clock:took(Stopped) < 3000,
    %% no terminal noise of a crash on the way down
    nomatch = re:run(?LIB:output(B), "crash|CRASH|panick", []).

%% init:restart/0 runs the whole boot again in the same OS process: the NIF library is there already.
init_restart(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "restarted"}]),
    NodeB = ?LIB:node(B),
    ?LIB:connect(A, B),
    {Threads, Fds} = {?LIB:threads(B), ?LIB:fds(B)},
    Monitor = ?LIB:call(A, erpc, call, [NodeB, erlang, system_info, [creation]]),
    ok = ?LIB:run(A, fun() -> erpc:cast(NodeB, init, restart, []), ok end),
    ?LIB:wait_until(restarted, fun() ->
        try ?LIB:call(A, erpc, call, [NodeB, erlang, system_info, [creation], 2000]) =/= Monitor
        catch error:{on_node, _, error, {erpc, _}, _} -> false
        end
    end, 30000),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []]),
    ?LIB:wait_until({threads_fds, {Threads, Fds}}, fun() -> ?LIB:threads(B) =< Threads andalso ?LIB:fds(B) =< Fds end, 10000).

%%% Where they listen

listen_range(_Config) ->
    [Taken, Free] = free_neighbours(),
    {ok, Tcp} = gen_tcp:listen(Taken, []),
    {ok, Udp} = gen_udp:open(Taken, []),
    [A, B] = ?LIB:start_all([#{tag => "range", args => ["-kernel", "inet_dist_listen_min", integer_to_list(Taken),
                                                        "inet_dist_listen_max", integer_to_list(Free)]}, #{tag => "b"}]),
    ok = gen_tcp:close(Tcp),
    ok = gen_udp:close(Udp),
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(A)), "@")),
    {port, Free, _} = ?LIB:call(B, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    ?LIB:connect(B, A),
    rpc_each_way([A, B]).

free_neighbours() ->
    First = ?LIB:free_port(),
    case {gen_udp:open(First + 1, []), gen_tcp:listen(First + 1, [])} of
        {{ok, Udp}, {ok, Tcp}} -> gen_udp:close(Udp), gen_tcp:close(Tcp), [First, First + 1];
        {Udp, Tcp} ->
            _ = [gen_udp:close(S) || {ok, S} <- [Udp]],
            _ = [gen_tcp:close(S) || {ok, S} <- [Tcp]],
            free_neighbours()
    end.

interface(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]} || T <- ["a", "b"]]),
    ?LIB:connect(A, B),
    rpc_each_way([A, B]),
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(A)), "@")),
    {port, Port, _} = ?LIB:call(B, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    %% bound to that address and to no other: the same port of another loopback address is free
    {ok, Other} = case ?LIB:carrier() of
        quic -> gen_udp:open(Port, [{ip, {127, 0, 0, 2}}]);
        inet_tcp -> gen_tcp:listen(Port, [{ip, {127, 0, 0, 2}}])
    end,
    inet:close(Other).

%%% Both dial at once

simultaneous_connect(_Config) ->
    %% nobody else dials: `global' of a node that has just lost the other one may have something to tell it
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-kernel", "dist_auto_connect", "never"]} || T <- ["a", "b"]]),
    {NodeA, NodeB} = {?LIB:node(A), ?LIB:node(B)},
    [round_of_two(I, {A, NodeA}, {B, NodeB}) || I <- lists:seq(1, ?SIMULTANEOUS)],
    ok.

round_of_two(Round, {A, NodeA}, {B, NodeB}) ->
    %% the barrier is a moment of the clock that both share: one machine
    At = os:system_time(microsecond) + 5000,
    Case = self(),
    Dials = [spawn_monitor(fun() -> exit({dialled, ?LIB:call(H, ?MODULE, connect_at, [To, At])}) end)
             || {H, To} <- [{A, NodeB}, {B, NodeA}]],
    Results = [receive {'DOWN', Monitor, process, Pid, Reason} -> Reason
               after 20000 -> error({deadline, {simultaneous_connect, Round, Case}})
               end || {Pid, Monitor} <- Dials],
    {Round, [{dialled, true}, {dialled, true}]} = {Round, Results},
    ?LIB:await_connected(A, B),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
    NodeA = ?LIB:call(B, erpc, call, [NodeA, erlang, node, [], 10000]),
    case Round rem 2 of
        0 -> ?LIB:disconnect(A, B);
        1 -> ?LIB:disconnect(B, A)
    end.

%% Sleeps to just before the moment, then spins: a timer alone is a millisecond off, longer than a handshake.
-spec connect_at(node(), integer()) -> boolean() | ignored.
connect_at(Node, At) ->
    timer:sleep(max(0, (At - os:system_time(microsecond)) div 1000 - 2)),
    spin(At),
    net_kernel:connect_node(Node).

spin(At) ->
    case os:system_time(microsecond) >= At of
        true -> ok;
        false -> spin(At)
    end.
