%% How the rows are measured that do not run on a pair of busy nodes: connecting, memory, idleness, and the engine alone.
-module(quic_dist_bench_cost).

-export([connect/2, memory/2, idle/1, ceiling/1]).

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
    lists:foreach(fun quic_dist_bench_node:stop/1, All),
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

%% How the resident memory of a node grows that dials 1, 10, 100 others. Its first connection, taken down again, is not counted:
%% it loads the code.
-spec memory(quic_dist_bench_carrier:carrier(), [{pos_integer(), [atom()]}]) -> quic_dist_bench_work:outcome().
memory(Carrier, Steps) ->
    Hub = quic_dist_bench_node:start(#{carrier => Carrier, name => "bench_hub"}),
    [First] = start_nodes(Carrier, "memory_first", 1, []),
    _ = dial(Hub, First),
    hang_up(Hub, First),
    ok = quic_dist_bench_node:stop(First),
    Base = footprint(Hub),
    {Values, Nodes} = lists:foldl(
        fun({Count, Measures}, {Acc, Nodes}) ->
            New = start_batches(Carrier, length(Nodes), Count),
            [dial(Hub, Node) || Node <- New],
            {Acc ++ per_connection(Measures, Count, Base, footprint(Hub)), Nodes ++ New}
        end, {[], []}, Steps),
    lists:foreach(fun quic_dist_bench_node:stop/1, [Hub | Nodes]),
    #{values => Values}.

%% The Measures name the resident size, then the VM's account.
per_connection(Measures, Count, {Rss0, Vm0}, {Rss, Vm}) ->
    Growth = [(Rss - Rss0) / 1024 / Count, (Vm - Vm0) / 1024 / Count],
    lists:zip(Measures, lists:sublist(Growth, length(Measures))).

%% The VM gives memory back some time after it was freed: what stays the same for a while is what is needed.
footprint(Hub) -> footprint(Hub, none, 0, 20).

footprint(_Hub, {_, _} = Settled, Same, Tries) when Same =:= 3; Tries =:= 0 -> Settled;
footprint(Hub, Seen, Same, Tries) ->
    timer:sleep(500),
    Vm = quic_dist_bench_node:call(Hub, ?LOAD, memory, []),
    Rss = quic_dist_bench_node:resident(Hub),
    case Seen of
        {Before, _} when abs(Rss - Before) =< 65536 -> footprint(Hub, {Rss, Vm}, Same + 1, Tries - 1);
        _ -> footprint(Hub, {Rss, Vm}, 0, Tries - 1)
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

%% The worse of both sides counts.
-spec idle(quic_dist_bench_carrier:carrier()) -> quic_dist_bench_work:outcome().
idle(Carrier) ->
    #{a := A, b := B} = Pair = quic_dist_bench_work:start_pair(Carrier, {#{}, #{}}),
    timer:sleep(?SETTLE_MS),
    Before = [wakes(Node) || Node <- [A, B]],
    timer:sleep(?IDLE_MS),
    After = [wakes(Node) || Node <- [A, B]],
    ok = quic_dist_bench_work:stop_pair(Pair),
    {Wakes, Switches} = lists:unzip([{W - W0, S - S0} || {{W0, S0}, {W, S}} <- lists:zip(Before, After)]),
    #{values => [{wake_ups, lists:max(Wakes)}, {switches, lists:max(Switches)}]}.

wakes(Node) ->
    #{wake_ups := Wakes} = quic_dist_bench_node:call(Node, ?LOAD, endpoint, []),
    {Wakes, quic_dist_bench_node:thread_switches(Node, "quic_dist")}.

-spec ceiling(float()) -> quic_dist_bench_work:outcome().
ceiling(Seconds) ->
    #{values => [{Measure, ceiling_rate(Mtu, max(1, round(Seconds)))} || {Measure, Mtu} <- [{rate_1452, 1452}, {rate, 16000}]]}.

ceiling_rate(Mtu, Seconds) ->
    Program = quic_dist_bench_node:start_program(os:getenv("QUIC_DIST_BENCH_CEILING"),
                                                 ["--mtu", integer_to_list(Mtu), "--seconds", integer_to_list(Seconds)]),
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
        {ended, Status} -> error({ceiling, Status, lists:reverse(Seen)})
    end.
