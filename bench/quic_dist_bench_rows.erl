%% What is measured: every row, on which carriers, its measures and its targets. quic_dist_bench_work and quic_dist_bench_cost say how.
-module(quic_dist_bench_rows).

-export([all/0, row/1, names/0, sections/0, carriers/2, measure/2, verdicts/3]).

-export_type([row/0, target/0, verdict/0, results/0]).

-type measure() :: {Name :: atom(), Label :: string(), Unit :: string()}.

-type peer() :: {base, atom()} | {with, [quic_dist_bench_carrier:option()]} | ceiling | number.
%% Another carrier; the same carrier with other options; the engine alone with the options of the subject, as one more of the row's
%% carriers; the factor is the bound itself.

-type target() :: {Subject :: [quic_dist_bench_carrier:option()], Measure :: atom(), at_most | at_least, Factor :: number(), peer()}.
%% It holds for every quic carrier with the options of the subject.

-type row() :: #{
    name := string(),
    title := string(),
    section := string(),
    group := pair | bulk | many | path | loss | ceiling | connect | memory | idle,   %% what the row needs to run
    on := [{[atom()], [quic_dist_bench_carrier:option()]}],            %% which of the carriers asked for, with which options
    measures := [measure()],
    targets := [target()],
    once => true                                                       %% one run is enough
}.

-type results() :: #{{Row :: string(), Measure :: atom(), Carrier :: string()} => quic_dist_bench_stats:summary()}.

-type verdict() :: #{text := string(), ratio := float() | unknown, met := boolean() | unknown}.

-define(FULL_PACKETS, [{"max_udp_payload", "1452"}]).
-define(STREAMS(N), [{"data_streams", N}]).
-define(EVERY, {[inet_tcp, inet_tls, quic], []}).

-spec names() -> [string()].
names() -> [Name || #{name := Name} <- all()].

-spec row(string()) -> row().
row(Name) -> hd([Row || #{name := N} = Row <- all(), N =:= Name]).

-spec sections() -> [string()].
sections() -> ["Latency and calls", "Small messages and terms", "Bulk", "Latency under load", "Streams of the application's own",
               "Connections", "The engine alone"].

-spec all() -> [row()].
all() ->
    [#{name => "pingpong", title => "a 16-byte message there and back, one at a time", section => "Latency and calls", group => pair,
       on => [?EVERY],
       measures => [{p50, "p50", "us"}, {p99, "p99", "us"} | costs("message")],
       targets => [{[], p50, at_most, 1.1, {base, inet_tcp}}, {[], p99, at_most, 1.5, {base, inet_tcp}}]},
     erpc("erpc_1", "erpc:call/4, one caller", 0.9),
     erpc("erpc_16", "erpc:call/4, 16 callers", 1.0),
     small("msgs_1", "100-byte messages, one sender"),
     small("msgs_8", "100-byte messages, 8 senders to a receiver each"),
     #{name => "terms", title => "a list of 10,000 maps as one message", section => "Small messages and terms", group => pair,
       on => [?EVERY],
       measures => [{rate, "rate", "messages/s"}],
       targets => [{[], rate, at_least, 0.8, {base, inet_tcp}}]},
     bulk("bulk_64k_1", "64 KiB messages, one sender", []),
     bulk("bulk_64k_8", "64 KiB messages, 8 senders", []),
     bulk("bulk_1m_1", "1 MiB messages, one sender", [{[], cpu, at_most, 0.5, {base, inet_tls}}]),
     bulk("bulk_1m_8", "1 MiB messages, 8 senders", []),
     #{name => "bulk_64m", title => "64 MiB messages, one sender", section => "Bulk", group => bulk,
       on => [{[inet_tcp, quic], []}],
       measures => [{rate, "rate", "MB/s"}],
       targets => [{[], rate, at_least, 0.5, {base, inet_tcp}}]},
     #{name => "many", title => "64 KiB messages of 4 nodes, one sender each, into one node at once", section => "Bulk", group => many,
       on => [{[inet_tcp, quic], []}],
       measures => [{rate, "rates together", "MB/s"}, {cpu, "CPU of all nodes", "s/GB"},
                    {thread, "receiving event thread", "% of a processor"}],
       targets => []},
     #{name => "load", title => "ping-pong while two processes send 1 MiB messages", section => "Latency under load", group => bulk,
       on => [{[inet_tcp, quic], []}],
       measures => [{p50, "p50", "us"}, {p99, "p99", "us"}, {rate, "bulk rate", "MB/s"}],
       targets => [{[], p50, at_most, 0.2, {base, inet_tcp}}, {[], p99, at_most, 0.1, {base, inet_tcp}},
                   {[], rate, at_least, 0.3, {base, inet_tcp}}]},
     #{name => "path", title => "the same on a path of 100 Mbit/s and 20 ms", section => "Latency under load", group => path,
       on => [{[inet_tcp, quic], []}],
       measures => [{p50, "p50", "us"}, {p99, "p99", "us"}, {rate, "bulk rate", "MB/s"}],
       targets => [{[], p99, at_most, 0.1, {base, inet_tcp}}]},
     #{name => "holb",
       title => "1 % of packets lost at 2 ms: a small message each 5 ms, there and back, while two processes send 1 MiB messages "
                "and wait for the answer",
       section => "Latency under load", group => loss,
       on => [{[quic], ?STREAMS("1")}, {[quic], ?STREAMS("4")}],
       measures => [{p50, "p50", "us"}, {p99, "p99", "us"}, {rate, "bulk rate", "MB/s"}],
       targets => [{?STREAMS("4"), p99, at_most, 0.2, {with, ?STREAMS("1")}}]},
     #{name => "holb_flood", title => "the same, a ping-pong while the two processes send without waiting",
       section => "Latency under load", group => loss,
       on => [{[quic], ?STREAMS("1")}, {[quic], ?STREAMS("4")}],
       measures => [{p50, "p50", "us"}, {p99, "p99", "us"}, {rate, "bulk rate", "MB/s"}],
       targets => []},
     #{name => "stream_first", title => "16 bytes there and back on a new stream, and as a message, in turns",
       section => "Streams of the application's own", group => pair, on => [{[quic], []}],
       measures => [{message, "message, p50", "us"}, {stream, "new stream, p50", "us"}, {ratio, "ratio of the two", ""}],
       targets => [{[], ratio, at_most, 1.2, number}]},
     stream("streams_1", "one stream that sends all it can"),
     stream("streams_100", "100 streams that send all they can"),
     beside_stream("stream_load", "ping-pong of messages while one stream sends all it can", bulk),
     beside_stream("stream_path", "the same on a path of 100 Mbit/s and 20 ms, where the path is what limits the stream", path),
     #{name => "connect", title => "net_kernel:connect_node/1, all code loaded before; QUIC's first by a full handshake, those after it resumed, which "
                                     "is checked",
       section => "Connections", group => connect,
       on => [?EVERY],
       measures => [{full, "first time", "ms"}, {again, "again after disconnect_node", "ms"}],
       targets => [{[], full, at_most, 1.0, {base, inet_tls}}, {[], again, at_most, 0.5, {base, inet_tls}}]},
     #{name => "memory", title => "anonymous resident memory of a node that has dialled so many others, and of one that they have dialled, per idle "
                                    "connection. That of 1 has in it what the first connection of a node costs once; of code, only what was loaded "
                                    "before is left out",
       section => "Connections", group => memory,
       on => [{[quic], []}], once => true,
       measures => [{rss_1, "has dialled 1", "KiB"}, {rss_10, "has dialled 10", "KiB"}, {rss_100, "has dialled 100", "KiB"},
                    {vm_100, "the same by the VM's account", "KiB"},
                    {in_1, "was dialled by 1", "KiB"}, {in_10, "was dialled by 10", "KiB"}, {in_100, "was dialled by 100", "KiB"},
                    {vm_in_100, "the same by the VM's account", "KiB"}],
       targets => [{[], Measure, at_most, 150, number} || Measure <- [rss_1, rss_10, rss_100, in_1, in_10, in_100]]},
     #{name => "idle", title => "an idle connection for 20 s, net_ticktime 60. The ticks are what may wake the event thread: on either side each of "
                                "them twice, when it is sent or comes and when that is acknowledged",
       section => "Connections", group => idle,
       on => [{[quic], []}], once => true,
       measures => [{wake_ups, "wake-ups of the event thread, the worse side", ""}, {switches, "its voluntary context switches", ""},
                    {ticks, "ticks of both sides", ""}, {per_tick, "wake-ups per tick", ""}],
       targets => [{[], per_tick, at_most, 2, number}]},
     #{name => "ceiling", title => "the engine, two processes without a BEAM, packets of 64 KiB", section => "The engine alone",
       group => ceiling, on => [{[ceiling], []}],
       measures => [{rate_1452, "datagrams of 1,452 B", "MB/s"}, {rate, "datagrams of up to 16,000 B", "MB/s"}],
       targets => [{[], rate_1452, at_least, 600, number}]}].

erpc(Name, Title, Factor) ->
    #{name => Name, title => Title, section => "Latency and calls", group => pair, on => [?EVERY],
      measures => [{rate, "rate", "calls/s"} | costs("call")],
      targets => [{[], rate, at_least, Factor, {base, inet_tcp}}]}.

small(Name, Title) ->
    #{name => Name, title => Title, section => "Small messages and terms", group => pair, on => [?EVERY],
      measures => [{rate, "rate", "messages/s"} | costs("message")],
      targets => [{[], rate, at_least, 1.0, {base, inet_tcp}}]}.

bulk(Name, Title, More) ->
    #{name => Name, title => Title, section => "Bulk", group => bulk, on => [?EVERY, {[quic], ?FULL_PACKETS}],
      measures => [{rate, "rate", "MB/s"}, {cpu, "CPU of both nodes", "s/GB"} | tl(costs("message"))],
      targets => [{[], rate, at_least, 0.5, {base, inet_tcp}},
                  {?FULL_PACKETS, rate, at_least, 0.8, ceiling},
                  {?FULL_PACKETS, rate, at_least, 10, {base, inet_tls}} | More]}.

stream(Name, Title) ->
    #{name => Name, title => Title, section => "Streams of the application's own", group => bulk, on => [{[quic], []}, {[quic], ?FULL_PACKETS}],
      measures => [{rate, "rate", "MB/s"}],
      targets => [{[], rate, at_least, 0.9, ceiling}, {?FULL_PACKETS, rate, at_least, 0.9, ceiling}]}.

beside_stream(Name, Title, Group) ->
    #{name => Name, title => Title, section => "Streams of the application's own", group => Group, on => [{[quic], []}],
      measures => [{idle_p99, "p99 before", "us"}, {p50, "p50", "us"}, {p99, "p99", "us"}, {ratio, "p99, ratio to before", ""},
                   {rate, "the stream's rate", "MB/s"}],
      targets => [{[], ratio, at_most, 2, number}]}.

%% What a message, or a call, costs both nodes together.
costs(What) ->
    [{cpu, "CPU per " ++ What, "us"}, {sleeps, "wake-ups per " ++ What ++ ", all threads", ""},
     {wake_ups, "of the event threads alone", ""}, {calls, "the engine's system calls per " ++ What, ""},
     {allocations, "its allocations per " ++ What, ""}].

%% The carriers of a row, given those asked for.
-spec carriers(row(), [quic_dist_bench_carrier:carrier()]) -> [quic_dist_bench_carrier:carrier()].
carriers(#{group := ceiling}, _Asked) ->
    [quic_dist_bench_carrier:ceiling([])];
carriers(#{on := On, targets := Targets}, Asked) ->
    Carriers = lists:usort(fun(A, B) -> order(A, Asked) =< order(B, Asked) end,
                           [quic_dist_bench_carrier:with(Carrier, Options)
                            || Carrier <- Asked, {Bases, Options} <- On, lists:member(maps:get(base, Carrier), Bases)]),
    Carriers ++ [quic_dist_bench_carrier:ceiling(Subject)
                 || {Subject, _, _, _, ceiling} <- Targets, lists:any(fun(Carrier) -> is_subject(Subject, Carrier) end, Carriers)].

%% As they were asked for, those with added options behind.
order(Carrier, Asked) ->
    {length(lists:takewhile(fun(A) -> A =/= Carrier end, Asked)), quic_dist_bench_carrier:label(Carrier)}.

-spec measure(row(), atom()) -> measure().
measure(#{measures := Measures}, Name) -> lists:keyfind(Name, 1, Measures).

%% What the targets say of a measure on a carrier; unknown when the peer was not measured.
-spec verdicts({row(), atom()}, quic_dist_bench_carrier:carrier(), results()) -> [verdict()].
verdicts({#{name := Name, targets := Targets, group := Group}, Measure}, Carrier, Results) ->
    [verdict(Name, Target, Carrier, Results)
     || {Subject, M, _, _, _} = Target <- Targets, M =:= Measure,
        Group =:= ceiling orelse is_subject(Subject, Carrier)].

%% What is said of quic holds with any options, but for the packets that are limited in size.
is_subject(Subject, Carrier) ->
    Options = quic_dist_bench_carrier:options(Carrier),
    quic_dist_bench_carrier:is_quic(Carrier) andalso Subject -- Options =:= [] andalso
        (Subject =:= ?FULL_PACKETS orelse ?FULL_PACKETS -- Options =/= []).

verdict(Name, {Subject, Measure, Way, Factor, Peer}, Carrier, Results) ->
    #{median := Ours} = maps:get({Name, Measure, quic_dist_bench_carrier:label(Carrier)}, Results),
    {Key, PeerText} = case Peer of
                          ceiling -> {{Name, Measure, quic_dist_bench_carrier:label(quic_dist_bench_carrier:ceiling(Subject))},
                                      " x the engine alone"};
                          _ -> peer(Name, Measure, Peer, Carrier)
                      end,
    Text = lists:flatten(io_lib:format("~s ~p~ts", [case Way of at_most -> "at most"; at_least -> "at least" end, Factor, PeerText])),
    case {Peer, Results} of
        {number, _} -> judged(Text, Way, Ours, Factor);
        {_, #{Key := #{median := Theirs}}} when Theirs > 0 -> judged(Text, Way, Ours / Theirs, Factor);
        _ -> #{text => Text, ratio => unknown, met => unknown}
    end.

judged(Text, Way, Value, Factor) ->
    Met = case Way of at_most -> Value =< Factor; at_least -> Value >= Factor end,
    #{text => Text, ratio => float(Value), met => Met}.

peer(Name, Measure, {base, Base}, _) -> {{Name, Measure, atom_to_list(Base)}, " x " ++ atom_to_list(Base)};
peer(Name, Measure, {with, Options}, Carrier) ->
    Label = quic_dist_bench_carrier:label(quic_dist_bench_carrier:with(Carrier, Options)),
    {{Name, Measure, Label}, " x " ++ Label};
peer(_, _, number, _) -> {none, ""}.
