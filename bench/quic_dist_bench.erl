%% The benchmark: reads the command line, runs every row on every carrier several times, and has the results written.
%% scripts/bench starts it and says what there is to choose.
-module(quic_dist_bench).

-export([main/0]).

-define(DEFAULT_CARRIERS, ["inet_tcp", "inet_tls", "quic"]).
-define(GROUPS, [pair, bulk, many, path, loss, connect, ceiling, memory, idle]).

-type settings() :: #{carriers := [quic_dist_bench_carrier:carrier()], rows := [quic_dist_bench_rows:row()], runs := pos_integer(),
                      quick := boolean(), write := boolean(), seconds := float(), lock := string() | none}.

%% Arguments come after -extra.
-spec main() -> no_return().
main() ->
    case options(init:get_plain_arguments(), #{rows => [], carriers => [], builds => [], runs => 3, quick => false, write => false,
                                               lock => none}) of
        list ->
            [io:format("~-12s ~ts~n", [Name, Title]) || #{name := Name, title := Title} <- quic_dist_bench_rows:all()],
            halt(0);
        {error, Text} ->
            io:format(standard_error, "bench: ~ts~n", [Text]),
            halt(2);
        Options ->
            try run(settings(Options)) of
                ok -> halt(0)
            catch
                Class:Reason:Stack ->
                    io:format(standard_error, "bench: ~p: ~p~n~p~n", [Class, Reason, Stack]),
                    halt(1)
            end
    end.

options(["--list" | _], _) -> list;
options(["--quick" | Rest], O) -> options(Rest, O#{quick := true});
options(["--write" | Rest], O) -> options(Rest, O#{write := true});
options(["--lock", File | Rest], O) -> options(Rest, O#{lock := File});
options(["--ebin", Dir | Rest], #{builds := Builds} = O) -> options(Rest, O#{builds := Builds ++ ["quic:" ++ Dir]});
options(["--carriers", Names | Rest], O) -> options(Rest, O#{carriers := string:lexemes(Names, ",")});
options(["--runs", Text | Rest], O) ->
    case string:to_integer(Text) of
        {N, []} when N > 0 -> options(Rest, O#{runs := N});
        _ -> {error, "--runs wants a number above 0"}
    end;
options(["-" ++ _ = Unknown | _], _) -> {error, "no option, or no value for it: " ++ Unknown};
options([Row | Rest], #{rows := Rows} = O) ->
    case lists:member(Row, quic_dist_bench_rows:names()) of
        true -> options(Rest, O#{rows := Rows ++ [Row]});
        false -> {error, "no row is called " ++ Row ++ "; --list names them"}
    end;
options([], #{carriers := Carriers, builds := Builds} = O) ->
    Names = case Carriers of [] -> ?DEFAULT_CARRIERS; _ -> Carriers end ++ Builds,
    Parsed = [{Name, quic_dist_bench_carrier:parse(Name)} || Name <- Names],
    case [Name || {Name, error} <- Parsed] of
        [] -> O#{carriers := [Carrier || {_, {ok, Carrier}} <- Parsed], full => Builds =:= [] andalso Carriers =:= []};
        [Wrong | _] -> {error, "no carrier is called " ++ Wrong}
    end.

%% A full run, whose result may be published, is one without a choice.
settings(#{rows := Names, quick := Quick, write := Write, runs := Runs, full := DefaultCarriers} = Options) ->
    Rows = [quic_dist_bench_rows:row(Name) || Name <- case Names of [] -> quic_dist_bench_rows:names(); _ -> Names end],
    Options#{rows := Rows,
             runs := case Quick of true -> 1; false -> Runs end,
             write := Write orelse (Names =:= [] andalso not Quick andalso DefaultCarriers),
             seconds => case Quick of true -> 0.7; false -> 2.0 end}.

-spec run(settings()) -> ok.
run(#{rows := Rows0, carriers := Carriers, runs := Runs} = Settings) ->
    Started = erlang:monotonic_time(second),
    {Rows, Skipped} = runnable(Rows0),
    Raw = lists:append([[outcome(Run, Piece) || Piece <- one_run(Run, Rows, Settings)] || Run <- lists:seq(1, Runs)]),
    Setup = list_to_integer(os:getenv("QUIC_DIST_BENCH_SETUP")),
    Took = Setup + erlang:monotonic_time(second) - Started,
    Report = #{rows => Rows, carriers => Carriers, raw => lists:append(Raw), skipped => Skipped, took => Took, setup => Setup,
               runs => Runs, seconds => maps:get(seconds, Settings)},
    quic_dist_bench_report:terminal(Report),
    quic_dist_bench_report:raw(Report),
    maps:get(write, Settings) andalso quic_dist_bench_report:publish(Report),
    ok.

outcome(Run, {Row, Carrier, #{values := Values, took := Took} = Outcome}) ->
    [#{run => Run, row => Row, carrier => Carrier, values => Values, samples => maps:get(samples, Outcome, <<>>), took => Took}].

runnable(Rows) ->
    case {[Row || #{group := Group} = Row <- Rows, needs_link(Group)], quic_dist_bench_link:available()} of
        {[], _} -> {Rows, []};
        {_, true} -> {Rows, []};
        {Without, {false, Why}} ->
            [progress("~s is skipped: ~ts", [Name, Why]) || #{name := Name} <- Without],
            {Rows -- Without, [{Name, Why} || #{name := Name} <- Without]}
    end.

needs_link(Group) -> Group =:= path orelse Group =:= loss.

%%% One run: every row on every carrier

one_run(Run, Rows, #{carriers := Asked} = Settings) ->
    lists:append(
      [group(Group, Run, [{Row, quic_dist_bench_rows:carriers(Row, Asked)} || Row <- In], Settings)
       || Group <- ?GROUPS,
          In <- [[Row || #{group := G} = Row <- Rows, G =:= Group, Run =:= 1 orelse not maps:is_key(once, Row)]],
          In =/= []]).

group(path, Run, Rows, Settings) ->
    timed(fun() -> on_link("p", ["--rate", "100mbit", "--delay", "10ms"], Run, Rows, Settings) end);
group(loss, Run, Rows, Settings) ->
    timed(fun() -> on_link("l", ["--rate", "2gbit", "--delay", "1ms", "--loss", "1"], Run, Rows, Settings) end);
group(pair, Run, Rows, Settings) ->
    timed(fun() -> on_pairs({#{}, #{}}, Run, Rows, Settings) end);
%% Each row has a pair of its own: inet_tls was seen to send large messages several times slower (8 to 50 MB/s instead of 35 to 90)
%% on a connection that had carried other traffic before.
group(bulk, Run, Rows, Settings) ->
    lists:append([timed(fun() -> on_pairs({#{}, #{}}, Run, [Row], Settings) end) || Row <- Rows]);
group(_, Run, Rows, Settings) ->
    lists:append([timed(fun() ->
                            lists:append([in_turn(Run, Carrier, [Row], Settings, fun() -> [alone(Row, Carrier, Settings)] end)
                                          || Carrier <- rotated(Run, Carriers)])
                        end) || {Row, Carriers} <- Rows]).

%% What a row takes in a run of its own: its measurements, and the nodes and paths that it shares with other rows here.
timed(Measure) ->
    Started = erlang:monotonic_time(millisecond),
    Outcomes = Measure(),
    Shared = erlang:monotonic_time(millisecond) - Started - lists:sum([Took || {_, _, #{took := Took}} <- Outcomes]),
    [{Name, Carrier, Outcome#{took := Took + Shared / length([N || {N, _, _} <- Outcomes, N =:= Name])}}
     || {Name, Carrier, #{took := Took} = Outcome} <- Outcomes].

on_link(Name, Options, Run, Rows, Settings) ->
    Link = quic_dist_bench_link:start(Name, Options),
    try on_pairs(quic_dist_bench_link:places(Link), Run, Rows, Settings)
    after quic_dist_bench_link:stop(Link)
    end.

%% A pair of nodes serves all these rows of a carrier.
on_pairs(Places, Run, Rows, #{seconds := Seconds} = Settings) ->
    lists:append(
      [begin
           Of = [Row || {Row, On} <- Rows, lists:member(Carrier, On)],
           in_turn(Run, Carrier, Of, Settings,
                   fun() ->
                       case quic_dist_bench_carrier:is_ceiling(Carrier) of
                           true -> [measured(Row, Carrier, fun() -> quic_dist_bench_cost:ceiling(Carrier, Seconds) end) || Row <- Of];
                           false -> on_pair(Carrier, Places, Of, Seconds)
                       end
                   end)
       end || Carrier <- rotated(Run, in_order(Rows))]).

on_pair(Carrier, Places, Rows, Seconds) ->
    Pair = quic_dist_bench_work:start_pair(Carrier, Places),
    Outcomes = [measured(Row, Carrier, fun() -> quic_dist_bench_work:measure(Name, Pair, Seconds) end) || #{name := Name} = Row <- Rows],
    ok = quic_dist_bench_work:stop_pair(Pair),
    Outcomes.

%% Each run begins with another carrier: what comes first may find the machine in another state.
rotated(Run, Carriers) ->
    {Head, Tail} = lists:split((Run - 1) rem length(Carriers), Carriers),
    Tail ++ Head.

%% All carriers of some rows, each once.
in_order(Rows) ->
    lists:foldl(fun(Carrier, Seen) -> Seen ++ [Carrier || not lists:member(Carrier, Seen)] end, [],
                lists:append([On || {_, On} <- Rows])).

alone(#{group := connect} = Row, Carrier, #{quick := Quick}) ->
    Fresh = case Quick of true -> 2; false -> 4 end,
    measured(Row, Carrier, fun() -> quic_dist_bench_cost:connect(Carrier, Fresh) end);
alone(#{group := many} = Row, Carrier, #{seconds := Seconds}) ->
    measured(Row, Carrier, fun() -> quic_dist_bench_work:many(Carrier, Seconds) end);
alone(#{group := memory} = Row, Carrier, #{quick := Quick}) ->
    Steps = [{1, [rss_1], [in_1]}, {10, [rss_10], [in_10]} | [{100, [rss_100, vm_100], [in_100, vm_in_100]} || not Quick]],
    measured(Row, Carrier, fun() -> quic_dist_bench_cost:memory(Carrier, Steps) end);
alone(#{group := idle} = Row, Carrier, _) ->
    measured(Row, Carrier, fun() -> quic_dist_bench_cost:idle(Carrier) end);
alone(#{group := ceiling} = Row, Carrier, #{seconds := Seconds}) ->
    measured(Row, Carrier, fun() -> quic_dist_bench_cost:ceiling(Seconds) end).

measured(#{name := Name} = Row, Carrier, Measure) ->
    Started = erlang:monotonic_time(millisecond),
    Outcome = #{values := Values} = Measure(),
    Took = erlang:monotonic_time(millisecond) - Started,
    Texts = [[Label, " ", quic_dist_bench_report:number(Value), [" " || Unit =/= ""], Unit]
             || {Key, Label, Unit} <- maps:get(measures, Row), {K, Value} <- Values, K =:= Key],
    progress("    ~-12s ~ts", [Name, lists:join(", ", Texts)]),
    {Name, quic_dist_bench_carrier:label(Carrier), Outcome#{took => Took}}.

%% With --lock FILE the machine is shared: others that take the same lock get turns between carriers.
in_turn(Run, Carrier, Rows, #{lock := Lock, runs := Runs}, Fun) ->
    Held = lock(Lock),
    progress("run ~b of ~b, ~ts: ~ts", [Run, Runs, quic_dist_bench_carrier:label(Carrier), lists:join(" ", [N || #{name := N} <- Rows])]),
    try Fun()
    after Held =:= none orelse quic_dist_bench_node:stop_program(Held)
    end.

lock(none) -> none;
lock(File) ->
    Program = quic_dist_bench_node:start_program("flock", [File, "sh", "-c", "echo locked; cat"]),
    {line, <<"locked">>} = quic_dist_bench_node:read_line(Program, infinity),
    Program.

progress(Format, Args) -> io:format(Format ++ "~n", Args).
