%% Connections and nodes that end, in every way they do: nothing is left behind, whoever watches is told in time and why, and what is
%% refused is refused with one clear line. Counts are read from /proc.
-module(lifecycle_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([reconnect_leaves_nothing/1, killed/1, stopped_and_continued/1, stopped_too_long/1, idle_longer_than_ticktime/1,
         bad_cookie/1, cookie_changed/1, port_taken/1, nobody_there/1, silent_peer/1, unreachable_address/1, congestion_control/1,
         halt_under_load/1, init_stop_under_load/1, terminated/1, nif_reload/1, hot_code_load/1]).
%% run on the nodes
-export([flood/2, sink/0]).

-define(LIB, quic_dist_test_lib).
-define(AGENT, quic_dist_test_agent).
-define(RECONNECTS, 500).
-define(WARM_UP, 100).
-define(MIB, 1048576).
%% net_kernel looks four times a tick time, and gives up after four looks: a quarter more than the tick time at the latest
-define(TICK_DEADLINE(Ticktime), (Ticktime * 1250 + 3000)).

suite() -> [{timetrap, {seconds, 240}}].

all() ->
    [reconnect_leaves_nothing, killed, stopped_and_continued, stopped_too_long, idle_longer_than_ticktime,
     bad_cookie, cookie_changed, port_taken, nobody_there, silent_peer, unreachable_address, congestion_control,
     halt_under_load, init_stop_under_load, terminated, nif_reload, hot_code_load].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) ->
    ?LIB:init_case(Case, [{nif_reload, "inet_tcp has no NIF"}, {hot_code_load, "inet_tcp is not ours to load again"},
                          {silent_peer, "a TCP listener completes the connection by itself"},
                          {congestion_control, "TCP's is the system's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

pair(Args) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => Args} || T <- ["a", "b"]]),
    [ok = ?LIB:call(H, ?AGENT, watch_nodes, []) || H <- [A, B]],
    {A, ?LIB:node(A), B, ?LIB:node(B)}.

nodedowns(Handle) -> [Event || {nodedown, _, _} = Event <- ?LIB:call(Handle, ?AGENT, node_events, [])].

millis() -> erlang:monotonic_time(millisecond).

%%% Nothing is left behind

reconnect_leaves_nothing(_Config) ->
    %% nobody else dials: `global' of a node that has just lost the other one may have something to tell it
    {A, _, B, NodeB} = pair(["-kernel", "dist_auto_connect", "never"]),
    Round = fun(I) ->
        ?LIB:connect(A, B),
        NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]),
        case I rem 2 of
            0 -> ?LIB:disconnect(A, B);
            1 -> ?LIB:disconnect(B, A)
        end
    end,
    [Round(I) || I <- lists:seq(1, ?WARM_UP)],
    %% measuring loads code, too
    _ = [settled(H) || H <- [A, B]],
    Before = [settled(H) || H <- [A, B]],
    [Round(I) || I <- lists:seq(1, ?RECONNECTS)],
    [begin
         %% what is closed asynchronously gets a moment
         ?LIB:wait_until({nothing_left, Was}, fun() ->
             Now = counts(H),
             lists:all(fun(K) -> maps:get(K, Now) =< maps:get(K, Was) end, [threads, fds, processes, ports, connections])
         end, 10000),
         Now = settled(H),
         ct:log("before ~p~nafter ~p", [Was, Now]),
         %% 20 KiB a connection would show
         true = maps:get(rss, Now) - maps:get(rss, Was) < 10 * ?MIB,
         true = maps:get(memory, Now) - maps:get(memory, Was) < 4 * ?MIB,
         true = maps:get(atoms, Now) - maps:get(atoms, Was) < 10
     end || {H, Was} <- lists:zip([A, B], Before)],
    ok.

settled(Handle) ->
    ok = ?LIB:collect(Handle),
    timer:sleep(300),
    counts(Handle).

counts(Handle) ->
    Inside = ?LIB:run(Handle, fun() ->
        #{processes => erlang:system_info(process_count), ports => erlang:system_info(port_count),
          atoms => erlang:system_info(atom_count), memory => erlang:memory(total)}
    end),
    Inside#{threads => ?LIB:threads(Handle), fds => ?LIB:fds(Handle), rss => ?LIB:rss(Handle), connections => engine_connections(Handle)}.

%% What the engine itself holds, half-open ones included.
engine_connections(Handle) ->
    case ?LIB:carrier() of
        inet_tcp -> 0;
        quic ->
            #{endpoints := Endpoints} = ?LIB:call(Handle, quic_dist, info, []),
            lists:sum([C + H || #{connections := C, half_open := H} <- Endpoints])
    end.

await_engine_connections(Handle, Count) ->
    Expected = case ?LIB:carrier() of quic -> Count; inet_tcp -> 0 end,
    ?LIB:wait_until({engine_connections, Handle, Expected}, fun() -> engine_connections(Handle) =:= Expected end, 10000).

%%% The other node is gone, or seems so

killed(_Config) ->
    {A, _, B, NodeB} = pair(["-kernel", "net_ticktime", "4"]),
    ?LIB:connect(A, B),
    ?LIB:kill(B),
    ?LIB:wait_until(nodedown, fun() -> nodedowns(A) =/= [] end, ?TICK_DEADLINE(4)),
    [{nodedown, NodeB, Reason}] = nodedowns(A),
    ct:log("reason: ~p", [Reason]),
    %% the kernel closes a dead process's TCP connection; of a dead UDP socket it tells who sends to it, and where it cannot, the ticks do
    true = lists:member(Reason, case ?LIB:carrier() of inet_tcp -> [connection_closed]; quic -> [{io, econnrefused}, net_tick_timeout] end),
    [] = ?LIB:call(A, erlang, nodes, []),
    await_engine_connections(A, 0).

stopped_and_continued(_Config) ->
    {A, NodeA, B, NodeB} = pair(["-kernel", "net_ticktime", "12"]),
    ?LIB:connect(A, B),
    Sink = ?LIB:run(B, fun() -> spawn(?MODULE, sink, []) end),
    Sender = ?LIB:worker(A),
    ?LIB:signal(B, "STOP"),
    ok = ?LIB:run_in(A, Sender, fun() -> [Sink ! {count, I} || I <- lists:seq(1, 1000)], ok end),
    timer:sleep(4000),
    ok = ?LIB:run_in(A, Sender, fun() -> [Sink ! {count, I} || I <- lists:seq(1001, 2000)], ok end),
    ?LIB:signal(B, "CONT"),
    Expected = lists:seq(1, 2000),
    Expected = ?LIB:run_in(A, Sender, fun() ->
        Sink ! {tell, self()},
        receive {counted, List} -> List after 15000 -> error(deadline) end
    end),
    {[], []} = {nodedowns(A), nodedowns(B)},
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []]),
    NodeA = ?LIB:call(B, erpc, call, [NodeA, erlang, node, []]).

-spec sink() -> no_return().
sink() -> sink([]).

sink(Counted) ->
    receive
        {count, I} -> sink([I | Counted]);
        {tell, To} -> To ! {counted, lists:reverse(Counted)}, sink([]);
        _ -> sink(Counted)
    end.

stopped_too_long(_Config) ->
    {A, NodeA, B, NodeB} = pair(["-kernel", "net_ticktime", "4"]),
    ?LIB:connect(A, B),
    Stopped = millis(),
    ?LIB:signal(B, "STOP"),
    ?LIB:wait_until(nodedown, fun() -> nodedowns(A) =/= [] end, ?TICK_DEADLINE(4)),
    [{nodedown, NodeB, net_tick_timeout}] = nodedowns(A),
    %% not before it was due
    true = millis() - Stopped > 2500,
    ?LIB:signal(B, "CONT"),
    %% B learns that it was given up, and why does not matter: the reason depends on what it reads first
    ?LIB:wait_until(nodedown_of_a, fun() -> nodedowns(B) =/= [] end, ?TICK_DEADLINE(4) + 5000),
    ?LIB:connect(A, B),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []]),
    NodeA = ?LIB:call(B, erpc, call, [NodeA, erlang, node, []]).

%% Ticks alone keep a silent connection; and a busy one way, silent the other, too.
idle_longer_than_ticktime(_Config) ->
    {A, _, B, NodeB} = pair(["-kernel", "net_ticktime", "4"]),
    ?LIB:connect(A, B),
    timer:sleep(7000),
    Sink = ?LIB:run(B, fun() -> spawn(?MODULE, sink, []) end),
    ok = ?LIB:run(A, fun() -> [begin Sink ! one_way, timer:sleep(5) end || _ <- lists:seq(1, 1200)], ok end, 90000),
    {[], []} = {nodedowns(A), nodedowns(B)},
    [NodeB] = ?LIB:call(A, erlang, nodes, []).

%%% Refused

bad_cookie(_Config) ->
    [A, B, Good] = ?LIB:start_all([#{tag => "a"}, #{tag => "stranger", cookie => "some_other_cookie"}, #{tag => "good"}]),
    [ok = ?LIB:call(H, ?AGENT, keep_log, []) || H <- [A, B]],
    ?LIB:connect(A, Good),
    [NodeA, NodeB, NodeGood] = [?LIB:node(H) || H <- [A, B, Good]],
    [begin
         Before = [length(refusals(H)) || H <- [A, B]],
         Started = quic_dist_test_clock:now_ms(),
         pang = ?LIB:call(From, net_adm, ping, [To]),
         true = quic_dist_test_clock:took(Started) < 5000,
         %% one line a side, and not more a little later
         Lines = fun() -> [lists:nthtail(N, refusals(H)) || {H, N} <- lists:zip([A, B], Before)] end,
         ?LIB:wait_until(refusal_logged, fun() -> lists:all(fun(L) -> L =/= [] end, expected_of(From, A, Lines())) end, 5000),
         timer:sleep(300),
         ct:log("~s dialled ~s:~n~p", [?LIB:node(From), To, Lines()]),
         [{L, 1} = {L, length(L)} || L <- expected_of(From, A, Lines())]
     end || {From, To} <- [{B, NodeA}, {A, NodeB}]],
    [NodeGood] = ?LIB:call(A, erlang, nodes, []),
    [] = ?LIB:call(B, erlang, nodes, []),
    NodeGood = ?LIB:call(A, erpc, call, [NodeGood, erlang, node, []]),
    await_engine_connections(A, 1),
    await_engine_connections(B, 0).

%% With TCP only the end that was dialled says anything.
expected_of(From, A, [LinesA, LinesB]) ->
    case ?LIB:carrier() of
        quic -> [LinesA, LinesB];
        inet_tcp when From =:= A -> [LinesB];
        inet_tcp -> [LinesA]
    end.

refusals(Handle) ->
    Pattern = case ?LIB:carrier() of quic -> "^quic_dist: .* cookie"; inet_tcp -> "Invalid challenge reply" end,
    [Line || {Level, Text} = Line <- ?LIB:call(Handle, ?AGENT, log_lines, []), logger:compare_levels(Level, info) =:= gt,
             re:run(Text, Pattern) =/= nomatch].

%% A node that is given the right cookie while it runs can join from then on, and one that loses it cannot.
cookie_changed(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "b", cookie => "some_other_cookie"}]),
    {NodeA, NodeB} = {?LIB:node(A), ?LIB:node(B)},
    pang = ?LIB:call(B, net_adm, ping, [NodeA]),
    true = ?LIB:call(B, erlang, set_cookie, [list_to_atom(?LIB:cookie())]),
    ?LIB:wait_until(pong, fun() -> ?LIB:call(B, net_adm, ping, [NodeA]) =:= pong end, 10000),
    ?LIB:disconnect(B, A),
    ?LIB:wait_until(pong_back, fun() -> ?LIB:call(A, net_adm, ping, [NodeB]) =:= pong end, 10000),
    ?LIB:disconnect(A, B),
    true = ?LIB:call(B, erlang, set_cookie, [changed_again]),
    %% the dialling end uses the new cookie at once
    pang = ?LIB:call(B, net_adm, ping, [NodeA]).

port_taken(_Config) ->
    Port = ?LIB:free_port(),
    {ok, Udp} = gen_udp:open(Port, []),
    {ok, Tcp} = gen_tcp:listen(Port, []),
    Args = ["-kernel", "inet_dist_listen_min", integer_to_list(Port), "inet_dist_listen_max", integer_to_list(Port)],
    {error, {exit_status, Status, Output}} = ?LIB:boot(#{tag => "taken", args => Args}),
    ct:log("~ts", [Output]),
    true = Status =/= 0,
    {match, _} = re:run(Output, "eaddrinuse|address already in use", [caseless]),
    nomatch = re:run(Output, "panicked|badmatch|function_clause|undef,"),
    %% the port is free again: the same node starts
    ok = gen_udp:close(Udp),
    ok = gen_tcp:close(Tcp),
    [A, B] = ?LIB:start_all([#{tag => "untaken", args => Args}, #{tag => "b"}]),
    ?LIB:connect(B, A).

nobody_there(_Config) ->
    dial_in_vain(?LIB:free_port()).

%% A UDP socket that takes everything and answers nothing.
silent_peer(_Config) ->
    {ok, Socket} = gen_udp:open(0, [{ip, {127, 0, 0, 1}}, binary, {active, true}]),
    {ok, Port} = inet:port(Socket),
    dial_in_vain(Port),
    %% it was dialled, indeed
    receive {udp, Socket, _, _, _} -> ok after 0 -> error(not_dialled) end,
    gen_udp:close(Socket).

%% EPMD knows the node, but it does not answer where EPMD says: `pang' within net_setuptime, and nothing left.
dial_in_vain(Port) ->
    [A, B] = ?LIB:start_all([#{tag => "a", args => ["-kernel", "net_setuptime", "2"]}, #{tag => "b"}]),
    ?LIB:connect(A, B),
    Gone = ?LIB:name("gone"),
    Epmd = ?LIB:fake_epmd_name(hd(string:lexemes(Gone, "@")), Port),
    pang = ?LIB:call(A, net_adm, ping, [list_to_atom(Gone)]),
    Before = counts(A),
    [begin
         Started = quic_dist_test_clock:now_ms(),
         pang = ?LIB:call(A, net_adm, ping, [list_to_atom(Gone)]),
         true = quic_dist_test_clock:took(Started) < 4000
     end || _ <- [1, 2]],
    ?LIB:wait_until({nothing_left, Before}, fun() ->
        Now = counts(A),
        lists:all(fun(K) -> maps:get(K, Now) =< maps:get(K, Before) end, [threads, fds, processes, ports])
            andalso maps:get(connections, Now) =< 1
    end, 10000),
    gen_tcp:close(Epmd),
    [_] = ?LIB:call(A, erlang, nodes, []),
    ok.

%% An address that is routed nowhere (TEST-NET-1), and a name that does not resolve.
unreachable_address(_Config) ->
    A = ?LIB:start(#{tag => "a", args => ["-kernel", "net_setuptime", "2"]}),
    [begin
         Started = millis(),
         pang = ?LIB:call(A, net_adm, ping, [Node]),
         true = millis() - Started < 8000
     end || Node <- ['nobody@192.0.2.1', 'nobody@no-such-host.invalid', 'not a node name', 'no-host']],
    [] = ?LIB:call(A, erlang, nodes, []),
    await_engine_connections(A, 0).

%% Each side decides for what it sends.
congestion_control(_Config) ->
    [A, B, C] = ?LIB:start_all([#{tag => Name, args => ["-quic_dist", "congestion_control", Name]} || Name <- ["cubic", "reno", "bbr2"]]),
    [begin
         ?LIB:connect(X, Y),
         Data = binary:copy(<<"congestion">>, 1000000),
         Data = ?LIB:call(X, erpc, call, [?LIB:node(Y), binary, copy, [Data], 60000])
     end || {X, Y} <- [{A, B}, {B, C}, {C, A}]],
    ok.

%%% The node itself ends

%% Eight processes of A keep B busy while it goes down.
-spec flood(node(), binary()) -> no_return().
flood(Node, Payload) ->
    {quic_dist_test_sink, Node} ! {flood, Payload},
    flood(Node, Payload).

under_load(A, B) ->
    NodeB = ?LIB:node(B),
    NodeA = ?LIB:node(A),
    ?LIB:connect(A, B),
    [?LIB:run(H, fun() -> register(quic_dist_test_sink, spawn(?MODULE, sink, [])) end) || H <- [A, B], ?LIB:call(H, erlang, whereis, [quic_dist_test_sink]) =:= undefined],
    _ = [?LIB:call(H, erlang, spawn, [?MODULE, flood, [To, binary:copy(<<7>>, Size)]])
         || {H, To} <- [{A, NodeB}, {B, NodeA}], Size <- [10, 1000, 100000, 1000000]],
    timer:sleep(200),
    ok.

end_under_load(End, ExpectedStatus) ->
    [begin
         [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "ending"}]),
         under_load(A, B),
         End(B),
         {Round, ExpectedStatus} = {Round, ?LIB:await_exit(B, 30000)},
         nomatch = re:run(?LIB:output(B), "panicked|Segmentation|corrupt|abort", []),
         %% A goes on
         true = ?LIB:call(A, erlang, is_alive, []),
         ?LIB:kill(A)
     end || Round <- lists:seq(1, 3)],
    ok.

halt_under_load(_Config) ->
    end_under_load(fun(B) -> ?LIB:cast(B, erlang, halt, [7]) end, 7),
    end_under_load(fun(B) -> ?LIB:cast(B, erlang, halt, [8, [{flush, false}]]) end, 8).

init_stop_under_load(_Config) ->
    end_under_load(fun(B) -> ?LIB:cast(B, init, stop, []) end, 0).

terminated(_Config) ->
    end_under_load(fun(B) -> ?LIB:signal(B, "TERM") end, 0).

%%% Code is loaded again under a connection

%% The VM loads a library again only if the library knows how to take over from its predecessor. Whether ours does or not: what runs
%% goes on running.
nif_reload(_Config) ->
    {A, _, B, NodeB} = pair([]),
    ?LIB:connect(A, B),
    {Threads, Controllers} = {?LIB:threads(A), ?LIB:call(A, erlang, system_info, [dist_ctrl])},
    [begin
         Loaded = ?LIB:call(A, c, l, [quic_dist_nif]),
         true = Loaded =:= {error, sticky_directory},
         NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []])
     end || _ <- lists:seq(1, 5)],
    {Threads, Controllers} = {?LIB:threads(A), ?LIB:call(A, erlang, system_info, [dist_ctrl])},
    [] = nodedowns(A),
    %% new connections, in and out
    [begin
         ?LIB:disconnect(H, To),
         ?LIB:connect(H, To),
         NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []])
     end || {H, To} <- [{A, B}, {B, A}]],
    ok.

hot_code_load(_Config) ->
    %% `global' of a node that loses another one takes it from the others as well
    {A, NodeA, B, NodeB} = pair(["-connect_all", "false"]),
    ?LIB:connect(A, B),
    Controllers = ?LIB:call(A, erlang, system_info, [dist_ctrl]),
    ok = ?LIB:run(A, fun() -> case application:load(quic_dist) of ok -> ok; {error, {already_loaded, _}} -> ok end end),
    {ok, All} = ?LIB:call(A, application, get_key, [quic_dist, modules]),
    %% nif_reload is about that one
    Modules = All -- [quic_dist_nif],
    [begin
         %% nobody is still in the code before the last: since then every process had something to do
         [{M, true} = {M, ?LIB:call(A, code, soft_purge, [M])} || M <- Modules],
         [{module, M} = ?LIB:call(A, code, load_file, [M]) || M <- Modules],
         NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, []]),
         NodeA = ?LIB:call(B, erpc, call, [NodeA, erlang, node, []]),
         %% the acceptor and the endpoint have their turn too
         New = ?LIB:start(#{tag => "new", args => ["-connect_all", "false"]}),
         ?LIB:connect(New, A),
         ?LIB:disconnect(New, A),
         ?LIB:connect(A, New),
         0 = ?LIB:stop(New)
     end || _ <- lists:seq(1, 3)],
    Still = ?LIB:call(A, erlang, system_info, [dist_ctrl]),
    [] = Controllers -- Still,
    false = lists:keymember(NodeB, 2, nodedowns(A)).
