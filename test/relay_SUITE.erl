%% A cluster over a bad network: a relay in user space loses, doubles and reorders datagrams, or falls silent for a while.
%% The relay and the epmd module that leads a node through it are tested first: what they do must be known before it is used.
-module(relay_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([relay_itself/1, epmd_route/1, lossy_order/1, lossy_large/1, lossy_connects/1, short_blackout/1, long_blackout/1, slow_path/1]).

-define(LIB, quic_dist_test_lib).
-define(AGENT, quic_dist_test_agent).
-define(MIB, 1048576).
-define(BAD_NETWORK, #{loss => 0.02, duplicate => 0.02, reorder => 0.05}).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [relay_itself, epmd_route, lossy_order, lossy_large, lossy_connects, short_blackout, long_blackout, slow_path].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) ->
    ?LIB:init_case(Case, [{C, "the relay carries UDP"} || C <- [lossy_order, lossy_large, lossy_connects, short_blackout, long_blackout, slow_path]],
                   Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% The tools

relay_itself(_Config) ->
    {ok, Server} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}, {recbuf, 4194304}]),
    {ok, ServerPort} = inet:port(Server),
    [C1, C2] = [begin {ok, C} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}, {recbuf, 4194304}]), C end || _ <- [1, 2]],
    {Relay, Port} = quic_dist_relay:start(#{to => ServerPort, capture => 3}),
    %% there and back, two clients kept apart, large datagrams, copies kept
    Large = rand:bytes(60000),
    ok = gen_udp:send(C1, {127, 0, 0, 1}, Port, <<"one">>),
    ok = gen_udp:send(C2, {127, 0, 0, 1}, Port, Large),
    Got = [begin {ok, M} = gen_udp:recv(Server, 0, 5000), M end || _ <- [1, 2]],
    [{Ip1, P1, <<"one">>}] = [M || {_, _, <<"one">>} = M <- Got],
    [{Ip2, P2, Large}] = [M || {_, _, D} = M <- Got, D =:= Large],
    true = P1 =/= P2,
    ok = gen_udp:send(Server, Ip1, P1, <<"to one">>),
    ok = gen_udp:send(Server, Ip2, P2, <<"to two">>),
    {ok, {_, Port, <<"to one">>}} = gen_udp:recv(C1, 0, 5000),
    {ok, {_, Port, <<"to two">>}} = gen_udp:recv(C2, 0, 5000),
    true = lists:sort([<<"one">>, Large]) =:= lists:sort(quic_dist_relay:captured(Relay)),
    %% then it behaves as badly as asked: of 5,000, so many are lost, doubled and overtaken
    ok = quic_dist_relay:set(Relay, #{loss => 0.1, duplicate => 0.1, reorder => 0.2}),
    [begin
         ok = gen_udp:send(C1, {127, 0, 0, 1}, Port, <<I:32>>),
         %% no more at once than sockets hold
         I rem 100 =:= 0 andalso ?LIB:wait_until({taken, I}, fun() -> taken(Relay) =:= I + 4 end, 10000)
     end || I <- lists:seq(1, 5000)],
    #{dropped := Dropped, duplicated := Duplicated, delayed := Delayed} = Stats = quic_dist_relay:stats(Relay),
    ct:log("~p", [Stats]),
    Numbers = [begin {ok, {_, _, <<I:32>>}} = gen_udp:recv(Server, 0, 5000), I end || _ <- lists:seq(1, 5000 - Dropped + Duplicated)],
    {error, timeout} = gen_udp:recv(Server, 0, 100),
    true = Dropped > 400 andalso Dropped < 600,
    true = Duplicated > 350 andalso Duplicated < 550,
    true = Delayed > 800 andalso Delayed < 1200,
    true = length(lists:usort(Numbers)) =:= 5000 - Dropped,
    true = Numbers =/= lists:sort(Numbers),
    quic_dist_relay:stop(Relay).

%% Datagrams of which it is decided what becomes of them: both ones of a twin count as forwarded.
taken(Relay) ->
    #{forwarded := Forwarded, dropped := Dropped, duplicated := Duplicated} = quic_dist_relay:stats(Relay),
    Forwarded + Dropped - Duplicated.

%% A node with the epmd module is dialled, and dials, as any; and where a route says so, elsewhere.
epmd_route(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "routed", args => ["-epmd_module", "quic_dist_test_epmd", "-kernel", "net_setuptime", "7"]}, #{tag => "b"}]),
    NodeB = ?LIB:node(B),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{alive(NodeB) => ?LIB:free_port()}]),
    pang = ?LIB:call(A, net_adm, ping, [NodeB]),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{}]),
    pong = ?LIB:call(A, net_adm, ping, [NodeB]),
    ?LIB:disconnect(A, B),
    ?LIB:connect(B, A).

alive(Node) -> hd(string:lexemes(atom_to_list(Node), "@")).

%%% The bad network

%% A dials B through a relay with these options.
pair(Options, Args) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-epmd_module", "quic_dist_test_epmd" | Args]} || T <- ["a", "b"]]),
    NodeB = ?LIB:node(B),
    Alive = alive(NodeB),
    {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    {Relay, RelayPort} = quic_dist_relay:start(Options#{to => PortB}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => RelayPort}]),
    [ok = ?LIB:call(H, ?AGENT, watch_nodes, []) || H <- [A, B]],
    ?LIB:connect(A, B),
    {A, B, NodeB, Relay}.

%% The case meant something only if the network was as bad as it was told to be.
was_bad(Relay) ->
    #{dropped := Dropped, duplicated := Duplicated, delayed := Delayed} = Stats = quic_dist_relay:stats(Relay),
    ct:log("~p", [Stats]),
    true = Dropped > 0 andalso Duplicated > 0 andalso Delayed > 0,
    quic_dist_relay:stop(Relay).

undisturbed(A, B) -> [[{nodeup, _}] = ?LIB:call(H, ?AGENT, node_events, []) || H <- [A, B]].

lossy_order(_Config) ->
    {A, B, NodeB, Relay} = pair(?BAD_NETWORK, []),
    ok = ?LIB:run(A, fun() ->
        Receiver = spawn(NodeB, signals_SUITE, collect, [self(), [{x, 100000}]]),
        [Receiver ! {x, I, []} || I <- lists:seq(1, 100000)],
        receive {Receiver, Result} -> in_order = Result after 60000 -> error(deadline) end,
        ok
    end, 70000),
    undisturbed(A, B),
    was_bad(Relay).

lossy_large(_Config) ->
    {A, B, NodeB, Relay} = pair(?BAD_NETWORK, []),
    ok = ?LIB:run(A, fun() ->
        Hasher = spawn(NodeB, terms_SUITE, hash_all, [self()]),
        Message = terms_SUITE:stamped(lossy, 64 * ?MIB),
        Hasher ! {message, Message},
        Hasher ! done,
        Expected = [{64 * ?MIB, erlang:md5(Message)}],
        receive {Hasher, Got} -> true = Expected =:= Got after 80000 -> error(deadline) end,
        ok
    end, 90000),
    undisturbed(A, B),
    was_bad(Relay).

%% The handshake, too, gets through: twenty times at 10 % loss. When B has not heard of the disconnect (the datagram that says so is
%% sent once, and may be lost), the new connection replaces the old one there.
lossy_connects(_Config) ->
    %% Before anything has come back, what is lost is sent again after 1, 3, 7 and 15 s (RFC 9002, section 6.2): in the 7 s that setting up may
    %% take by default these are three attempts, and of some thousand dials one would have no luck with any.
    {A, B, NodeB, Relay} = pair(#{loss => 0.1, duplicate => 0.1, reorder => 0.1}, ["-kernel", "net_setuptime", "31"]),
    [begin
         NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
         true = ?LIB:call(A, erlang, disconnect_node, [NodeB]),
         {I, true} = {I, ?LIB:call(A, net_kernel, connect_node, [NodeB], 60000)},
         ?LIB:await_connected(A, B)
     end || I <- lists:seq(1, 20)],
    was_bad(Relay).

%% Nothing at all gets through for less than the tick time: what was sent meanwhile arrives afterwards.
short_blackout(_Config) ->
    {A, B, NodeB, Relay} = pair(#{}, ["-kernel", "net_ticktime", "20"]),
    Collector = ?LIB:run(A, fun() -> Me = spawn(fun() -> receive {_, R} -> exit(R) end end), {Me, spawn(NodeB, signals_SUITE, collect, [Me, [{x, 3000}]])} end),
    {_, Receiver} = Collector,
    Sender = ?LIB:worker(A),
    Send = fun(From, To) -> ?LIB:run_in(A, Sender, fun() -> [Receiver ! {x, I, []} || I <- lists:seq(From, To)], ok end) end,
    ok = Send(1, 1000),
    ok = quic_dist_relay:set(Relay, #{loss => 1.0}),
    ok = Send(1001, 2000),
    timer:sleep(4000),
    ok = quic_dist_relay:set(Relay, #{loss => 0.0}),
    ok = Send(2001, 3000),
    {Waiter, _} = Collector,
    in_order = ?LIB:run(A, fun() ->
        Monitor = erlang:monitor(process, Waiter),
        receive {'DOWN', Monitor, process, Waiter, Why} -> Why after 20000 -> error(deadline) end
    end),
    undisturbed(A, B),
    quic_dist_relay:stop(Relay).

%% For longer: both ends give up in time, and connect again when the network is back.
long_blackout(_Config) ->
    %% on its own, B would dial A past the relay as soon as it has given up
    {A, B, NodeB, Relay} = pair(#{}, ["-kernel", "net_ticktime", "4", "dist_auto_connect", "never"]),
    NodeA = ?LIB:node(A),
    ok = quic_dist_relay:set(Relay, #{loss => 1.0}),
    [?LIB:wait_until({nodedown, H}, fun() -> ?LIB:call(H, erlang, nodes, []) =:= [] end, 8000) || H <- [A, B]],
    %% whom it concerns is told a little after nodes() has changed
    [?LIB:wait_until({told, H}, fun() -> length(?LIB:call(H, ?AGENT, node_events, [])) >= 2 end, 5000) || H <- [A, B]],
    [{nodeup, NodeB}, {nodedown, NodeB, net_tick_timeout}] = ?LIB:call(A, ?AGENT, node_events, []),
    [{nodeup, NodeA}, {nodedown, NodeA, net_tick_timeout}] = ?LIB:call(B, ?AGENT, node_events, []),
    ok = quic_dist_relay:set(Relay, #{loss => 0.0}),
    ?LIB:connect(A, B),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
    quic_dist_relay:stop(Relay).

%% 50 ms each way: bulk data must fill the path, not wait for a round trip per message.
slow_path(_Config) ->
    {A, B, NodeB, Relay} = pair(#{delay_ms => 50}, []),
    Millis = ?LIB:run(A, fun() ->
        Hasher = spawn(NodeB, terms_SUITE, hash_all, [self()]),
        Messages = [terms_SUITE:stamped(I, ?MIB) || I <- lists:seq(1, 16)],
        Started = erlang:monotonic_time(millisecond),
        [Hasher ! {message, M} || M <- Messages],
        Hasher ! done,
        Expected = [{?MIB, erlang:md5(M)} || M <- Messages],
        receive {Hasher, Got} -> true = Expected =:= Got after 60000 -> error(deadline) end,
        erlang:monotonic_time(millisecond) - Started
    end, 70000),
    ct:log("16 MiB at 100 ms round trip: ~b ms", [Millis]),
    true = Millis < 20000,
    undisturbed(A, B),
    quic_dist_relay:stop(Relay).
