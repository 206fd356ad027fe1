%% How the rows are measured that do not run on a pair of busy nodes: connecting, memory, idleness, and the engine alone.
-module(quic_dist_bench_cost).

-export([connect/2, memory/2, idle/1, ceiling/1, ceiling/2]).

-define(LOAD, quic_dist_bench_load).
-define(BATCH, 10).
%% The first tick that is sent is the second that is due, after 30 s: it falls into the time that is watched.
-define(SETTLE_MS, 18000).
-define(IDLE_MS, 20000).

%% Each of Fresh nodes is dialled for the first time, then again. All code is loaded before: the dialling node has dialled another,
%% and another has dialled the fresh ones.
-spec connect(quic_dist_bench_carrier:carrier(), pos_integer()) -> quic_dist_bench_work:outcome().
connect(Carrier, Fresh) ->
    [Hub, Other | Nodes] = All = start_nodes(Carrier, "connect", Fresh + 2, []),
    [begin _ = dial(Other, Node), hang_up(Other, Node) end || Node <- [Hub | Nodes]],
    _ = dial(Hub, Other),
    hang_up(Hub, Other),
    {Full, Again} = lists:unzip([{dial_and_hang_up(Hub, Node, false),
                                  [dial_and_hang_up(Hub, Node, true) || _ <- lists:seq(1, 4)]}
                                 || Node <- Nodes]),
    quic_dist_bench_node:stop_all(All),
    #{values => [{full, median_ms(Full)}, {again, median_ms(lists:append(Again))}]}.

%% A QUIC connection says whether it has resumed a session: what is published as such must have.
dial_and_hang_up(From, To, Resumed) ->
    Took = dial(From, To),
    case quic_dist_bench_node:call(From, ?LOAD, resumed, [quic_dist_bench_node:name(To)]) of
        unknown -> ok;
        Resumed -> ok;
        Other -> error({resumed, Other, quic_dist_bench_node:name(To)})
    end,
    hang_up(From, To),
    Took.

median_ms(Ns) -> maps:get(median, quic_dist_bench_stats:summary(Ns)) / 1.0e6.

dial(From, To) ->
    Took = quic_dist_bench_node:call(From, ?LOAD, connect, [quic_dist_bench_node:name(To), 20]),
    is_integer(Took) orelse error({not_connected, quic_dist_bench_node:name(From), quic_dist_bench_node:name(To)}),
    Took.

%% Both sides know of it, and have had the time to put everything away.
hang_up(From, To) ->
    ok = quic_dist_bench_node:call(From, ?LOAD, disconnect, [quic_dist_bench_node:name(To)]),
    ok = quic_dist_bench_node:call(To, ?LOAD, disconnect, [quic_dist_bench_node:name(From)]),
    timer:sleep(50).

%% How the resident memory grows of a node that dials 1, 10, 100 others, and of one that these dial. What it grows by before the first
%% is left out: all code that a connection needs is loaded.
-spec memory(quic_dist_bench_carrier:carrier(), [{pos_integer(), Dialling :: [atom()], Accepting :: [atom()]}]) ->
          quic_dist_bench_work:outcome().
memory(Carrier, Steps) ->
    [Dialling, Accepting | Others] = start_nodes(Carrier, "memory_hub", 4, []),
    Hubs = [Dialling, Accepting],
    Modules = modules_of_a_connection(Others),
    [ok = quic_dist_bench_node:call(Hub, ?LOAD, load_code, [Modules]) || Hub <- Hubs],
    Bases = footprints(Hubs),
    {Values, Nodes} = lists:foldl(
        fun({Count, OfDialling, OfAccepting}, {Acc, Nodes}) ->
            New = start_batches(Carrier, length(Nodes), Count),
            [begin dial(Dialling, Node), dial(Node, Accepting) end || Node <- New],
            Grown = lists:append([per_connection(Measures, Count, Base, Now)
                                  || {Measures, Base, Now} <- lists:zip3([OfDialling, OfAccepting], Bases, footprints(Hubs))]),
            {Acc ++ Grown, Nodes ++ New}
        end, {[], []}, Steps),
    quic_dist_bench_node:stop_all(Hubs ++ Nodes),
    #{values => Values}.

%% What two nodes have loaded that have been connected.
modules_of_a_connection([From, To] = Nodes) ->
    _ = dial(From, To),
    hang_up(From, To),
    Modules = lists:append([quic_dist_bench_node:call(Node, ?LOAD, loaded, []) || Node <- Nodes]),
    quic_dist_bench_node:stop_all(Nodes),
    lists:usort(Modules).

%% The Measures name the resident size, then the VM's account.
per_connection(Measures, Count, {Rss0, Vm0}, {Rss, Vm}) ->
    Growth = [(Rss - Rss0) / 1024 / Count, (Vm - Vm0) / 1024 / Count],
    lists:zip(Measures, lists:sublist(Growth, length(Measures))).

%% The VM gives memory back some time after it was freed: what stays the same for a while is what is needed.
footprints(Hubs) -> footprints(Hubs, [], 0, 20).

footprints(_Hubs, [_ | _] = Settled, Same, Tries) when Same =:= 3; Tries =:= 0 -> Settled;
footprints(Hubs, Seen, Same, Tries) ->
    timer:sleep(500),
    Now = [begin
               Vm = quic_dist_bench_node:call(Hub, ?LOAD, memory, []),
               {quic_dist_bench_node:resident(Hub), Vm}
           end || Hub <- Hubs],
    case Seen =/= [] andalso lists:all(fun({{Rss, _}, {Before, _}}) -> abs(Rss - Before) =< 65536 end, lists:zip(Now, Seen)) of
        true -> footprints(Hubs, Now, Same + 1, Tries - 1);
        false -> footprints(Hubs, Now, 0, Tries - 1)
    end.

%% A hundred nodes that boot at once on a few cores would time out.
start_batches(_Carrier, Count, Count) -> [];
start_batches(Carrier, From, To) ->
    Batch = min(?BATCH, To - From),
    New = start_nodes(Carrier, "memory_" ++ integer_to_list(From), Batch, ["+S", "1:1", "+SDcpu", "1", "+SDio", "1", "+A", "1"]),
    New ++ start_batches(Carrier, From + Batch, To).

start_nodes(Carrier, Name, Count, Args) ->
    quic_dist_bench_node:start_all([#{carrier => Carrier, args => Args, name => lists:concat(["bench_", Name, "_", I])}
                                    || I <- lists:seq(1, Count)]).

%% The worse of both sides counts. Ticks of both: each wakes who sends it, and who gets it.
-spec idle(quic_dist_bench_carrier:carrier()) -> quic_dist_bench_work:outcome().
idle(Carrier) ->
    #{a := A, b := B} = Pair = quic_dist_bench_work:start_pair(Carrier, {#{}, #{}}),
    [ok = quic_dist_bench_node:call(Node, ?LOAD, start_ticks, []) || Node <- [A, B]],
    timer:sleep(?SETTLE_MS),
    Before = [wakes(Node) || Node <- [A, B]],
    timer:sleep(?IDLE_MS),
    After = [wakes(Node) || Node <- [A, B]],
    ok = quic_dist_bench_work:stop_pair(Pair),
    {Wakes, Switches, Sent} = lists:unzip3([{W - W0, S - S0, T - T0} || {{W0, S0, T0}, {W, S, T}} <- lists:zip(Before, After)]),
    Ticks = lists:sum(Sent),
    Ticks > 0 orelse error(no_tick),
    #{values => [{wake_ups, lists:max(Wakes)}, {switches, lists:max(Switches)}, {ticks, Ticks}, {per_tick, lists:max(Wakes) / Ticks}]}.

wakes(Node) ->
    #{wake_ups := Wakes} = quic_dist_bench_node:call(Node, ?LOAD, endpoint, []),
    {Wakes, quic_dist_bench_node:thread_switches(Node, "quic_dist"), quic_dist_bench_node:call(Node, ?LOAD, ticks, [])}.

%% The row of the engine alone.
-spec ceiling(float()) -> quic_dist_bench_work:outcome().
ceiling(Seconds) ->
    #{values => [{Measure, ceiling_rate(Mtu, Seconds)} || {Measure, Mtu} <- [{rate_1452, "1452"}, {rate, "16000"}]]}.

%% The engine alone among the carriers of another row.
-spec ceiling(quic_dist_bench_carrier:carrier(), float()) -> quic_dist_bench_work:outcome().
ceiling(Carrier, Seconds) ->
    Mtu = proplists:get_value("max_udp_payload", quic_dist_bench_carrier:options(Carrier), "16000"),
    #{values => [{rate, ceiling_rate(Mtu, Seconds)}]}.

ceiling_rate(Mtu, Seconds) ->
    Program = quic_dist_bench_node:start_program(os:getenv("QUIC_DIST_BENCH_CEILING"),
                                                 ["--mtu", Mtu, "--seconds", integer_to_list(max(1, round(Seconds)))]),
    Rate = await_rate(Program, []),
    ok = quic_dist_bench_node:stop_program(Program),
    Rate.

await_rate(Program, Seen) ->
    case quic_dist_bench_node:read_line(Program, 30000) of
        {line, Line} ->
            case re:run(Line, "^(\\d+) MB/s", [{capture, all_but_first, list}]) of
                {match, [Rate]} -> list_to_integer(Rate);
                nomatch -> await_rate(Program, [Line | Seen])
            end;
        Other -> error({ceiling, Other, lists:reverse(Seen)})
    end.
