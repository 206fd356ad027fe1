%% Which plots there are, and of what.
-module(quic_dist_bench_plots).

-export([write/3]).

%% The plots that there are results for: file, title, section of the document.
-spec write(file:filename(), quic_dist_bench_rows:results(), #{{string(), string()} => tuple()}) -> [{string(), string(), string()}].
write(Folder, Results, Pooled) ->
    {Ceilings, Carriers} = lists:partition(fun(Name) -> lists:prefix("ceiling", Name) end,
                                           lists:usort([Carrier || {_, _, Carrier} <- maps:keys(Results)])),
    Names = Carriers ++ Ceilings,
    [begin
         ok = file:write_file(filename:join(Folder, File), unicode:characters_to_binary(Svg)),
         {File, Title, Section}
     end || {File, Title, Section, Svg} <- bars(Results, Names) ++ curves(Pooled, Names)].

bars(Results, Names) ->
    [{File, Title, Section, quic_dist_bench_svg:bars(Title, Unit, Scale, Groups, Names)}
     || {File, Section, Title, Unit, Scale, Of} <- bar_plots(),
        Groups <- [[{Label, Bars} || {Label, Row, Measure} <- Of, Bars <- [bars_of(Row, Measure, Results)], Bars =/= []]],
        Groups =/= []].

bars_of(Row, Measure, Results) ->
    lists:sort([{Carrier, Summary} || {{R, M, Carrier}, Summary} <- maps:to_list(Results), R =:= Row, M =:= Measure]).

bar_plots() ->
    [{"pingpong.svg", "Latency and calls", "16-byte ping-pong", "us", linear, [{"p50", "pingpong", p50}, {"p99", "pingpong", p99}]},
     {"calls.svg", "Latency and calls", "erpc calls", "calls/s", linear, [{"1 caller", "erpc_1", rate}, {"16 callers", "erpc_16", rate}]},
     {"messages.svg", "Small messages and terms", "100-byte messages", "messages/s", linear,
      [{"1 sender", "msgs_1", rate}, {"8 senders", "msgs_8", rate}]},
     {"terms.svg", "Small messages and terms", "a list of 10,000 maps", "messages/s", linear, [{"1 sender", "terms", rate}]},
     {"bulk.svg", "Bulk", "Large messages", "MB/s", linear,
      [{"64 KiB, 1 sender", "bulk_64k_1", rate}, {"64 KiB, 8", "bulk_64k_8", rate}, {"1 MiB, 1", "bulk_1m_1", rate},
       {"1 MiB, 8", "bulk_1m_8", rate}, {"64 MiB, 1", "bulk_64m", rate}]},
     {"cpu.svg", "Bulk", "CPU of both nodes", "s/GB", linear, [{"1 MiB, 1 sender", "bulk_1m_1", cpu}, {"1 MiB, 8", "bulk_1m_8", cpu}]},
     {"load.svg", "Latency under load", "Ping-pong under load", "us", log,
      [{"loopback, p50", "load", p50}, {"loopback, p99", "load", p99},
       {"100 Mbit/s, p50", "path", p50}, {"100 Mbit/s, p99", "path", p99}]},
     {"connect.svg", "Connections", "Connecting", "ms", linear, [{"first time", "connect", full}, {"again", "connect", again}]}].

curves(Pooled, Names) ->
    [{File, Title, Section, quic_dist_bench_svg:curves(Title, Lines, Names)}
     || {File, Section, Title, Row} <- curve_plots(),
        Lines <- [lists:sort([{Carrier, quic_dist_bench_stats:cdf(Sorted, 200)}
                              || {{R, Carrier}, Sorted} <- maps:to_list(Pooled), R =:= Row])],
        Lines =/= []].

curve_plots() ->
    [{"pingpong-cdf.svg", "Latency and calls", "Ping-pong, idle: part of the round trips within a time", "pingpong"},
     {"load-cdf.svg", "Latency under load", "Ping-pong under load: part of the round trips within a time", "load"},
     {"path-cdf.svg", "Latency under load", "The same at 100 Mbit/s and 20 ms", "path"},
     {"holb-cdf.svg", "Latency under load", "Small messages, 1 % of datagrams lost, by number of data streams", "holb"}].
