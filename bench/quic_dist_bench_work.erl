%% How the rows are measured that need connected nodes: one run of one row, on one pair if it is not `many'.
%%
%% A measurement is bounded by time, not by bytes: a slow carrier must not take minutes. What it sent first is not counted.
-module(quic_dist_bench_work).

-export([start_pair/2, stop_pair/1, measure/3, many/2]).

-export_type([pair/0, outcome/0]).

-type pair() :: #{a := quic_dist_bench_node:bench_node(), b := quic_dist_bench_node:bench_node()}.
%% a sends, b receives.

-type outcome() :: #{values := [{Measure :: atom(), number()}], samples => binary()}.

-define(LOAD, quic_dist_bench_load).
-define(MIB, 1048576).

%% Two nodes, connected. Place may say where each runs.
-spec start_pair(quic_dist_bench_carrier:carrier(), {map(), map()}) -> pair().
start_pair(Carrier, {PlaceA, PlaceB}) ->
    Id = integer_to_list(erlang:unique_integer([positive])),
    [A, B] = quic_dist_bench_node:start_all([PlaceA#{carrier => Carrier, name => "bench_a" ++ Id},
                                             PlaceB#{carrier => Carrier, name => "bench_b" ++ Id}]),
    case quic_dist_bench_node:call(A, ?LOAD, connect, [quic_dist_bench_node:name(B), 3]) of
        false -> error({not_connected, quic_dist_bench_carrier:label(Carrier), [quic_dist_bench_node:written(Node) || Node <- [A, B]]});
        _Took -> #{a => A, b => B}
    end.

-spec stop_pair(pair()) -> ok.
stop_pair(#{a := A, b := B}) ->
    ok = quic_dist_bench_node:stop(A),
    ok = quic_dist_bench_node:stop(B).

%% Seconds: how long a measurement of ordinary length takes.
-spec measure(string(), pair(), float()) -> outcome().
measure("pingpong", Pair, Seconds) -> pingpong(Pair, ms(Seconds));
measure("erpc_1", Pair, Seconds) -> erpc(Pair, 1, ms(Seconds));
measure("erpc_16", Pair, Seconds) -> erpc(Pair, 16, ms(Seconds));
measure("msgs_1", Pair, Seconds) -> messages(Pair, 1, ms(Seconds));
measure("msgs_8", Pair, Seconds) -> messages(Pair, 8, ms(Seconds));
measure("terms", Pair, Seconds) -> terms(Pair, ms(Seconds));
measure("bulk_64k_1", Pair, Seconds) -> bulk(Pair, 1, 65536, ms(Seconds));
measure("bulk_64k_8", Pair, Seconds) -> bulk(Pair, 8, 65536, ms(Seconds));
measure("bulk_1m_1", Pair, Seconds) -> bulk(Pair, 1, ?MIB, ms(Seconds));
measure("bulk_1m_8", Pair, Seconds) -> bulk(Pair, 8, ?MIB, ms(Seconds));
measure("bulk_64m", Pair, Seconds) -> bulk(Pair, 1, 64 * ?MIB, ms(Seconds));
measure("load", Pair, Seconds) -> under_load(Pair, {binary, ?MIB}, pingpong, [500, ms(1.5 * Seconds)]);
measure("path", Pair, Seconds) -> under_load(Pair, {binary, ?MIB}, pingpong, [1000, ms(2.5 * Seconds)]);
measure("stream_first", Pair, Seconds) -> stream_first(Pair, ms(Seconds));
measure("streams_1", Pair, Seconds) -> streams(Pair, 1, ms(Seconds));
measure("streams_100", Pair, Seconds) -> streams(Pair, 100, ms(Seconds));
measure("stream_load", Pair, Seconds) -> under_stream(Pair, ms(1.5 * Seconds));
measure("stream_path", Pair, Seconds) -> under_stream(Pair, ms(2.5 * Seconds));
measure("holb", Pair, Seconds) -> under_load(Pair, {answered, ?MIB}, steady, [500, ms(2.5 * Seconds), 5]);
measure("holb_flood", Pair, Seconds) -> under_load(Pair, {binary, ?MIB}, pingpong, [500, ms(2.5 * Seconds)]).

ms(Seconds) -> round(1000 * Seconds).

%%% Round trips

pingpong(#{a := A, b := B} = Pair, Ms) ->
    ok = call(B, start_echo, []),
    _WarmUp = call(A, pingpong, [quic_dist_bench_node:name(B), 500, 1]),
    Before = costs(Pair),
    Samples = call(A, pingpong, [quic_dist_bench_node:name(B), 0, Ms]),
    Costs = per_message(Before, costs(Pair), 2 * (byte_size(Samples) div 8)),
    ok = call(B, stop, []),
    #{values => latencies(Samples) ++ Costs, samples => Samples}.

latencies(Samples) ->
    Sorted = quic_dist_bench_stats:samples(Samples),
    [{p50, quic_dist_bench_stats:percentile(0.5, Sorted) / 1000}, {p99, quic_dist_bench_stats:percentile(0.99, Sorted) / 1000},
     {count, tuple_size(Sorted)}].

erpc(#{a := A, b := B} = Pair, Callers, Ms) ->
    ok = call(A, start_erpc, [quic_dist_bench_node:name(B), Callers]),
    First = call(A, sample_after, [300, 1]),
    Before = costs(Pair),
    Last = call(A, sample_after, [Ms, 0]),
    After = costs(Pair),
    ok = call(A, stop, []),
    #{values => [{rate, rate(First, Last)} | per_message(Before, After, counted(First, Last))]}.

%% Small messages while others send large ones.
under_load(#{a := A, b := B} = Pair, What, How, Args) ->
    ok = call(B, start_echo, []),
    ok = start_flow(Pair, 2, What),
    First = call(B, sample_after, [500, 1]),
    Samples = call(A, How, [quic_dist_bench_node:name(B) | Args]),
    Last = call(B, sample, []),
    ok = stop_flow(Pair),
    #{values => latencies(Samples) ++ [{rate, bulk_rate(First, Last, ?MIB)}], samples => Samples}.

%%% One way

messages(Pair, Senders, Ms) ->
    ok = start_flow(Pair, Senders, {binary, 100}),
    #{b := B} = Pair,
    First = call(B, sample_after, [500, 1]),
    Before = costs(Pair),
    Last = call(B, sample_after, [Ms, 0]),
    After = costs(Pair),
    ok = stop_flow(Pair),
    #{values => [{rate, rate(First, Last)} | per_message(Before, After, counted(First, Last))]}.

terms(#{b := B} = Pair, Ms) ->
    ok = start_flow(Pair, 1, maps),
    First = call(B, sample_after, [500, 1]),
    Last = call(B, sample_after, [Ms, 0]),
    ok = stop_flow(Pair),
    #{values => [{rate, rate(First, Last)}]}.

bulk(#{b := B} = Pair, Senders, Size, Ms) ->
    ok = start_flow(Pair, Senders, {binary, Size}),
    First = call(B, sample_after, [400, 1]),
    Before = costs(Pair),
    Last = call(B, sample_after, [Ms, maps:get(count, First) + 2]),
    After = costs(Pair),
    %% nothing else is measured on this pair: what is under way need not arrive
    Rate = bulk_rate(First, Last, Size),
    Seconds = (maps:get(at, Last) - maps:get(at, First)) / 1.0e9,
    {value, {cpu, Cpu}, Others} = lists:keytake(cpu, 1, per_message(Before, After, Rate * 1.0e6 * Seconds / Size)),
    #{values => [{rate, Rate}, {cpu, Cpu * 1000 / Size} | Others]}.

-define(MANY, 4).
-define(MANY_SIZE, 65536).

%% Several nodes send into one at once.
-spec many(quic_dist_bench_carrier:carrier(), float()) -> outcome().
many(Carrier, Seconds) ->
    [To | From] = All = quic_dist_bench_node:start_all([#{carrier => Carrier, name => lists:concat(["bench_many_", I])}
                                                        || I <- lists:seq(0, ?MANY)]),
    [true = is_integer(call(Node, connect, [quic_dist_bench_node:name(To), 3])) || Node <- From],
    ok = call(To, start_receivers, [?MANY]),
    [ok = call(Node, start_sender, [quic_dist_bench_node:name(To), I, {binary, ?MANY_SIZE}])
     || {I, Node} <- lists:zip(lists:seq(1, ?MANY), From)],
    First = call(To, sample_after, [1000, ?MANY]),
    {Cpu0, Thread0} = {cpu_ms(All), quic_dist_bench_node:thread_cpu_ms(To, "quic_dist")},
    Last = call(To, sample_after, [ms(Seconds), 0]),
    {Cpu, Thread} = {cpu_ms(All) - Cpu0, quic_dist_bench_node:thread_cpu_ms(To, "quic_dist") - Thread0},
    [ok = call(Node, stop, []) || Node <- From],
    quic_dist_bench_node:stop_all(All),
    Took = (maps:get(at, Last) - maps:get(at, First)) / 1.0e9,
    #{values => [{rate, bulk_rate(First, Last, ?MANY_SIZE)}, {cpu, Cpu * 1.0e6 / (counted(First, Last) * ?MANY_SIZE)}
                 | [{thread, 100 * Thread / 1000 / Took} || quic_dist_bench_carrier:is_quic(Carrier)]]}.

cpu_ms(Nodes) -> lists:sum([quic_dist_bench_node:cpu_ms(Node) || Node <- Nodes]).

%%% Streams of the application's own

stream_first(#{a := A, b := B}, Ms) ->
    ok = call(B, start_echo, []),
    ok = call(B, start_stream_echo, [quic_dist_bench_node:name(A)]),
    _WarmUp = call(A, first_bytes, [quic_dist_bench_node:name(B), 300]),
    {Messages, Streams} = call(A, first_bytes, [quic_dist_bench_node:name(B), Ms]),
    ok = call(B, stop, []),
    [Message, Stream] = [quic_dist_bench_stats:percentile(0.5, quic_dist_bench_stats:samples(Samples)) / 1000
                         || Samples <- [Messages, Streams]],
    #{values => [{message, Message}, {stream, Stream}, {ratio, Stream / Message}]}.

streams(Pair, N, Ms) ->
    ok = start_streams(Pair, N),
    #{b := B} = Pair,
    First = call(B, sample_after, [500, 1]),
    Last = call(B, sample_after, [Ms, 0]),
    ok = stop_streams(Pair),
    #{values => [{rate, rate(First, Last) / 1.0e6}]}.

%% Small messages while one stream sends all it can.
under_stream(#{a := A, b := B} = Pair, Ms) ->
    ok = call(B, start_echo, []),
    Idle = call(A, pingpong, [quic_dist_bench_node:name(B), 500, Ms]),
    ok = start_streams(Pair, 1),
    First = call(B, sample_after, [500, 1]),
    Samples = call(A, pingpong, [quic_dist_bench_node:name(B), 0, Ms]),
    Last = call(B, sample, []),
    ok = stop_streams(Pair),
    [{p50, P50}, {p99, P99}, _Count] = latencies(Samples),
    {p99, IdleP99} = lists:keyfind(p99, 1, latencies(Idle)),
    #{values => [{idle_p99, IdleP99}, {p50, P50}, {p99, P99}, {ratio, P99 / IdleP99}, {rate, rate(First, Last) / 1.0e6}]}.

start_streams(#{a := A, b := B}, N) ->
    ok = call(B, start_sink, [quic_dist_bench_node:name(A)]),
    call(A, start_sources, [quic_dist_bench_node:name(B), N]).

stop_streams(#{a := A, b := B}) ->
    ok = call(A, stop, []),
    call(B, stop, []).

%%% What the flows share

start_flow(#{a := A, b := B}, Senders, What) ->
    ok = call(B, start_receivers, [Senders]),
    ok = call(A, start_senders, [quic_dist_bench_node:name(B), Senders, What]).

%% What is under way arrives before the next measurement begins.
stop_flow(#{a := A, b := B}) ->
    ok = call(A, stop, []),
    await_silence(B, maps:get(count, call(B, sample, [])), 60),
    ok = call(B, stop, []).

await_silence(B, Count, Tries) ->
    #{count := Now} = call(B, sample_after, [250, 0]),
    case Now of
        Count -> ok;
        _ when Tries > 0 -> await_silence(B, Now, Tries - 1)
    end.

%%% Numbers

counted(#{count := First}, #{count := Last}) -> Last - First.

%% Per second.
rate(#{at := From} = First, #{at := To} = Last) ->
    counted(First, Last) * 1.0e9 / (To - From).

%% MB/s. From arrival to arrival: a sample falls somewhere into a message, and a message may be a good part of what came.
bulk_rate(#{last := From} = First, #{last := To} = Last, Size) when To > From ->
    counted(First, Last) * Size * 1.0e3 / (To - From);
bulk_rate(_, _, _) ->
    0.0.

%% What both nodes have cost so far: processor time, threads that fell asleep, and by the engine's own counters, where there is one,
%% its system calls (without those that take a lock or send a message to a process: those are in the threads that fall asleep) and
%% allocations.
costs(#{a := A, b := B}) ->
    [lists:foldl(fun add/2, #{}, [#{cpu => 1000 * quic_dist_bench_node:cpu_ms(Node), sleeps => quic_dist_bench_node:switches(Node)}
                                  || Node <- [A, B]])
     | [lists:foldl(fun add/2, #{}, [engine(Info) || Info <- Infos])
        || Infos <- [[call(Node, endpoint, []) || Node <- [A, B]]], [] =:= [none || none <- [engine(Info) || Info <- Infos]]]].

engine(#{wake_ups := Wakes, poll_calls := Polls, yields := Yields, receive_calls := Receives, send_calls := Sends,
         wake_calls := WakeCalls, allocations := Allocations}) ->
    #{wake_ups => Wakes, calls => Polls + Yields + Receives + Sends + WakeCalls, allocations => Allocations};
engine(_) ->
    none.

add(Map, Sum) -> maps:merge_with(fun(_, X, Y) -> X + Y end, Map, Sum).

%% Processor time in microseconds.
per_message(Before, After, Messages) ->
    [{Measure, (maps:get(Measure, To) - From) / Messages}
     || {First, To} <- lists:zip(Before, After), {Measure, From} <- maps:to_list(First)].

call(Node, Function, Args) -> quic_dist_bench_node:call(Node, ?LOAD, Function, Args).
