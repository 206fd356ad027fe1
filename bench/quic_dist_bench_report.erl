%% What is said of a benchmark: on the terminal, in logs/bench (raw numbers), in docs/benchmarks.md and docs/benchmarks/ (plots).
-module(quic_dist_bench_report).

-export([terminal/1, raw/1, publish/1, number/1]).

-export_type([report/0]).

-type outcome() :: #{run := pos_integer(), row := string(), carrier := string(), values := [{atom(), number()}], samples := binary(),
                     took := Ms :: number()}.
-type report() :: #{rows := [quic_dist_bench_rows:row()], raw := [outcome()], skipped := [{string(), string()}],
                    took := non_neg_integer(), setup := non_neg_integer(), runs := pos_integer(), seconds := float(), _ => _}.

%%% The terminal

-spec terminal(report()) -> ok.
terminal(#{rows := Rows, skipped := Skipped, took := Took} = Report) ->
    Results = results(Report),
    io:format("~n"),
    Alone = alone(Report),
    lists:foreach(fun(#{name := Name} = Row) -> row_lines(Row, Results), io:format("  ~b s~n~n", [maps:get(Name, Alone)]) end, Rows),
    [io:format("~s was skipped: ~ts~n", [Name, Why]) || {Name, Why} <- Skipped],
    {Met, Missed} = count(Rows, Results),
    io:format("~b targets met, ~b missed; ~b s~n", [Met, Missed, Took]).

row_lines(#{name := Name, title := Title, measures := Measures} = Row, Results) ->
    io:format("~ts: ~ts~n", [Name, Title]),
    [begin
         {Head, Tail} = case verdicts(Row, Measure, Carrier, Results) of [] -> {"", []}; [V | Vs] -> {V, Vs} end,
         io:format("  ~ts ~ts ~ts ~ts~n", [pad([Label, [", " || Unit =/= ""], Unit], 40), pad(Carrier, 26),
                                           pad(spread(maps:get({Name, Measure, Carrier}, Results)), 32), verdict(Head)]),
         [io:format("  ~ts ~ts~n", [pad("", 100), verdict(V)]) || V <- Tail]
     end || {Measure, Label, Unit} <- Measures, Carrier <- measured_on(Name, Measure, Results)],
    ok.

pad(Text, Width) -> string:pad(unicode:characters_to_list(Text), Width).

verdict("") -> "";
verdict(#{met := unknown}) -> "";
verdict(#{text := Text, ratio := Ratio, met := Met}) ->
    [Text, ": ", number(Ratio), " ", case Met of true -> "met"; false -> "MISSED" end].

%%% Raw numbers

-spec raw(report()) -> ok.
raw(#{raw := Raw}) ->
    Folder = filename:join([project(), "logs", "bench"]),
    ok = filelib:ensure_dir(filename:join(Folder, "x")),
    ok = file:write_file(filename:join(Folder, "results.csv"),
                         ["run,row,carrier,measure,value\n",
                          [io_lib:format("~b,~s,~ts,~s,~p~n", [Run, Row, Carrier, Measure, Value])
                           || #{run := Run, row := Row, carrier := Carrier, values := Values} <- Raw, {Measure, Value} <- Values]]),
    lists:foreach(
      fun(Row) ->
              ok = file:write_file(filename:join(Folder, "samples-" ++ Row ++ ".csv"),
                                   ["run,carrier,nanoseconds\n",
                                    [[integer_to_list(Run), $,, Carrier, $,, integer_to_list(Ns), $\n]
                                     || #{run := Run, row := R, carrier := Carrier, samples := Samples} <- Raw, R =:= Row,
                                        <<Ns:64>> <= Samples]])
      end, lists:usort([Row || #{row := Row, samples := Samples} <- Raw, Samples =/= <<>>])),
    io:format("raw numbers: ~ts~n", [Folder]).

%%% Documents

-spec publish(report()) -> ok.
publish(#{rows := Rows} = Report) ->
    Results = results(Report),
    Folder = filename:join([project(), "docs", "benchmarks"]),
    ok = filelib:ensure_dir(filename:join(Folder, "x")),
    Plots = quic_dist_bench_plots:write(Folder, Results, pooled(Report)),
    File = filename:join([project(), "docs", "benchmarks.md"]),
    ok = file:write_file(File, unicode:characters_to_binary(
        [head(Report, count(Rows, Results)), [section(Title, Rows, {Results, alone(Report)}, Plots) || Title <- quic_dist_bench_rows:sections()],
         skipped(Report)])),
    io:format("written: ~ts and ~b plots~n", [File, length(Plots)]).

head(#{runs := Runs, took := Took, seconds := Seconds} = Report, {Met, Missed}) ->
    {Longest, Slowest} = lists:max([{S, Name} || {Name, S} <- maps:to_list(alone(Report))]),
    [io_lib:format(
       "# Benchmarks~n~n"
       "Written by `make bench` (`scripts/bench` runs single rows, other carriers, other builds). **~b of ~b targets are met.**~n~n",
       [Met, Met + Missed]),
     [["- ", Line, "\n"] || Line <- machine()],
     io_lib:format(
       "~n"
       "Two `erl` processes on one machine over loopback, with the options of OTP but `-proto_dist`; `inet_tls` with TLS 1.3,~n"
       "TLS_AES_128_GCM_SHA256, P-256 certificates and `verify_peer` on both sides. Runs: ~b. In each, the carriers~n"
       "take turns, in each run another one first, each with new pairs of nodes, and a cell says the median of the runs~n"
       "[smallest - largest] (`memory` and `idle` run once). The ceiling is the engine alone, two processes without a BEAM that send~n"
       "packets of 64 KiB; it takes its turn among the carriers. A measurement takes ~.1f s or a few times that, after a warm-up; all~n"
       "took ~b min, and the row that takes longest alone, `~s`, ~b s.~n~n"
       "Rates are counted where messages arrive. Round trips are taken on one node's monotonic clock, every one of them.~n"
       "Processor time is that of all threads of both nodes, by the kernel; a wake-up is a thread of theirs that had fallen asleep. The~n"
       "engine's event thread does not fall asleep at once when there is nothing to do: it asks the kernel again and again for up to~n"
       "0.3 ms and lets others run in between. That saves wake-ups, and shows in its system calls and in processor time. Its~n"
       "system calls are those for datagrams, for waiting and for waking it, those in vain included; its allocations those of Rust.~n~n"
       "The nodes are controlled over a Unix socket. On a machine of few cores, nodes, engines and the kernel compete for them, and figures differ from run to run:~n"
       "see the brackets. The head of `bench/quic_dist_bench_load.erl` and the files beside it say how each row is measured.~n~n",
       [Runs, Seconds, round(Took / 60), Slowest, Longest])].

%% Seconds that `scripts/bench ROW' takes for each row: all its runs.
alone(#{rows := Rows, raw := Raw, setup := Setup}) ->
    maps:from_list([{Name, Setup + round(lists:sum([Took || #{row := R, took := Took} <- Raw, R =:= Name]) / 1000)}
                    || #{name := Name} <- Rows]).

machine() ->
    Cpu = os:cmd("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1"),
    [["Machine: ", string:trim(Cpu), ", ", integer_to_list(erlang:system_info(logical_processors)), " cores, Linux ",
      string:trim(os:cmd("uname -r")),
      ", TCP with ", tcp()],
     ["OTP ", erlang:system_info(otp_release), ", ERTS ", erlang:system_info(version), ", ssl ", version(ssl),
      ", quic_dist ", quic_version(), " at commit ", string:trim(os:cmd("git -C '" ++ project() ++ "' describe --always --dirty"))],
     ["Date: ", calendar:system_time_to_rfc3339(erlang:system_time(second), [{offset, "Z"}])]].

tcp() ->
    case quic_dist_bench_carrier:congestion_control() of
        {set, Same, Same} -> Same;
        {set, Name, Otherwise} -> [Name, " (set for the nodes' connections: Linux' default; this machine's is ", Otherwise, ")"];
        {left, Name} -> [Name, " (this machine's: cubic, Linux' default, cannot be chosen)"]
    end.

version(App) ->
    _ = application:load(App),
    {ok, Version} = application:get_key(App, vsn),
    Version.

quic_version() ->
    {ok, [{application, quic_dist, Keys}]} = file:consult(filename:join(os:getenv("QUIC_DIST_BENCH_EBIN"), "quic_dist.app")),
    proplists:get_value(vsn, Keys).

%% A table with a column for each carrier that some row of the section was measured on.
section(Section, Rows0, {Results, Alone}, Plots) ->
    Rows = [Row || #{section := S} = Row <- Rows0, S =:= Section],
    Carriers = ordered(lists:append([measured_on(Name, Measure, Results)
                                     || #{name := Name, measures := Measures} <- Rows, {Measure, _, _} <- Measures])),
    case Carriers of
        [] -> [];
        _ ->
            ["## ", Section, "\n\n| row | measure | ", lists:join(" | ", Carriers), " | target | ratio | |\n|",
             lists:duplicate(5 + length(Carriers), " --- |"), "\n",
             [lines(Row, Carriers, Results) || Row <- Rows], "\n",
             lists:join("\n", [["`", Name, "`: ", Title, ". Takes ", integer_to_list(Seconds), " s."]
                               || #{name := Name, title := Title} <- Rows, #{Name := Seconds} <- [Alone]]), "\n\n",
             [["![", Alt, "](benchmarks/", File, ")\n\n"] || {File, Alt, S} <- Plots, S =:= Section]]
    end.

%% One line for each measure and target.
lines(#{name := Name, measures := Measures} = Row, Carriers, Results) ->
    [begin
         Verdicts = lists:append([[{Carrier, V} || V <- verdicts(Row, Measure, Carrier, Results)]
                                  || Carrier <- measured_on(Name, Measure, Results)]),
         Cells = [cell(Results, {Name, Measure, Carrier}) || Carrier <- Carriers],
         First = ["| `", Name, "` | ", Label, [", " || Unit =/= ""], Unit, " | ", lists:join(" | ", Cells), " | "],
         More = ["| | | ", lists:duplicate(length(Carriers), "| ")],
         case Verdicts of
             [] -> [First, " | | |\n"];
             [V | Vs] -> [First, target(V), [[More, target(Next)] || Next <- Vs]]
         end
     end || {Measure, Label, Unit} <- Measures, measured_on(Name, Measure, Results) =/= []].

target({Carrier, #{text := Text, ratio := Ratio, met := Met}}) ->
    [Carrier, ": ", Text, " | ", case Ratio of unknown -> ""; _ -> number(Ratio) end, " | ",
     case Met of true -> "met"; false -> "**missed**"; unknown -> "not measured" end, " |\n"].

cell(Results, Key) ->
    case Results of
        #{Key := Summary} -> spread(Summary);
        _ -> ""
    end.

skipped(#{skipped := []}) -> [];
skipped(#{skipped := Skipped}) -> ["Not measured: ", lists:join("; ", [["`", Name, "`: ", Why] || {Name, Why} <- Skipped]), ".\n"].

%%% Results

-spec results(report()) -> quic_dist_bench_rows:results().
results(#{raw := Raw}) ->
    Grouped = lists:foldl(
        fun({Key, Value}, Acc) -> maps:update_with(Key, fun(Values) -> [Value | Values] end, [Value], Acc) end, #{},
        [{{Row, Measure, Carrier}, Value} || #{row := Row, carrier := Carrier, values := Values} <- Raw, {Measure, Value} <- Values]),
    maps:map(fun(_, Values) -> quic_dist_bench_stats:summary(Values) end, Grouped).

%% The samples of all runs of a row on a carrier, sorted.
pooled(#{raw := Raw}) ->
    Keys = lists:usort([{Row, Carrier} || #{row := Row, carrier := Carrier, samples := Samples} <- Raw, Samples =/= <<>>]),
    maps:from_list([{Key, quic_dist_bench_stats:samples(iolist_to_binary(
                                [S || #{row := R, carrier := C, samples := S} <- Raw, {R, C} =:= Key]))}
                    || Key <- Keys]).

measured_on(Name, Measure, Results) ->
    ordered([Carrier || {N, M, Carrier} <- maps:keys(Results), N =:= Name, M =:= Measure]).

%% inet_tcp, inet_tls, quic, quic with more: as the alphabet has it.
ordered(Carriers) -> lists:usort(Carriers).

verdicts(Row, Measure, Label, Results) ->
    {ok, Carrier} = quic_dist_bench_carrier:parse(Label),
    quic_dist_bench_rows:verdicts({Row, Measure}, Carrier, Results).

count(Rows, Results) ->
    All = [Met || #{name := Name, measures := Measures} = Row <- Rows, {Measure, _, _} <- Measures,
                  Carrier <- measured_on(Name, Measure, Results), #{met := Met} <- verdicts(Row, Measure, Carrier, Results)],
    {length([true || true <- All]), length([false || false <- All])}.

spread(#{median := Same, min := Same, max := Same}) -> number(Same);
spread(#{median := Median, min := Min, max := Max}) -> [number(Median), " [", number(Min), " - ", number(Max), "]"].

%% Three digits or so, more only of whole numbers.
-spec number(number()) -> iolist().
number(Number) when abs(Number) >= 100 -> grouped(integer_to_list(round(Number)));
number(Number) when is_integer(Number) -> integer_to_list(Number);
number(Number) when abs(Number) >= 10 -> io_lib:format("~.1f", [Number]);
number(Number) when abs(Number) >= 0.1; Number == 0 -> io_lib:format("~.2f", [Number]);
number(Number) -> io_lib:format("~.3f", [Number]).

grouped([$- | Digits]) -> [$- | grouped(Digits)];
grouped(Digits) ->
    {Head, Tail} = lists:split(length(Digits) rem 3, Digits),
    lists:join($,, [Head || Head =/= []] ++ threes(Tail)).

threes([A, B, C | Rest]) -> [[A, B, C] | threes(Rest)];
threes([]) -> [].

project() -> os:getenv("QUIC_DIST_BENCH_PROJECT").
