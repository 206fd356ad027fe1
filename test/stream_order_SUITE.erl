%% Streams of the application's own on a bad or narrow path: whose turn it is, shown by figures, and owners that end at any step.
-module(stream_order_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([shares/1, shares_with_loss/1, ends_at_every_step/1]).
%% run on the nodes
-export([counter/2, acceptor/2]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [shares, shares_with_loss, ends_at_every_step].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% Whose turn it is

%% A link of 8 MB/s that everybody could fill alone. What each gets of it while all of them send:
shares(_Config) ->
    %% whose turn it is shows among those that have something to send, even if they wait for a processor
    Figures = ?S:on_path(#{rate => 8000000}, ["-quic_dist", "user_stream_queue", "4194304"], fun(B) ->
        Counter = ?S:on(B, ?MODULE, counter, [self(), node()]),
        {_, _, Low} = LowS = full(B, 200),
        {_, _, Low2} = full(B, 200),
        timer:sleep(1500),
        Alike = window(Counter),
        {_, _, High} = full(B, 16),
        timer:sleep(1500),
        Urgent = window(Counter),
        ok = quic_dist:set_priority(LowS, 16),
        timer:sleep(1500),
        Raised = window(Counter),
        ok = quic_dist:set_priority(LowS, 255),
        %% messages of the distribution, beside all of these
        messages(Counter),
        timer:sleep(1500),
        Messages = window(Counter),
        [share([Low], Alike), share([Low2], Alike), share([High], Urgent), share([Low], Raised), share([High], Raised),
         share([message], Messages), maps:values(Messages)]
    end),
    ct:log("of the link: two of 200 ~p and ~p; one of 16 beside them ~p; raised to 16 ~p beside the other one of 16 ~p; "
           "messages beside all streams ~p (~p)", Figures),
    [OneOfTwo, OtherOfTwo, Urgent, Raised, Other, Messages | _] = Figures,
    [true = Share > 0.35 || Share <- [OneOfTwo, OtherOfTwo, Raised, Other]],
    true = Urgent > 0.8,
    true = Messages > 0.8.

%% The same order where packets are lost: what has to be sent again has its stream's turn.
shares_with_loss(_Config) ->
    Figures = ?S:on_path(#{rate => 8000000, loss => 0.01, reorder => 0.02}, ["-quic_dist", "user_stream_queue", "4194304"], fun(B) ->
        Counter = ?S:on(B, ?MODULE, counter, [self(), node()]),
        _ = full(B, 200),
        {_, _, High} = full(B, 16),
        timer:sleep(1000),
        Urgent = window(Counter),
        messages(Counter),
        timer:sleep(1000),
        Messages = window(Counter),
        [share([High], Urgent), share([message], Messages), Urgent, Messages]
    end),
    ct:log("with loss: one of 16 beside one of 200 ~p; messages beside both ~p (~p, ~p)", Figures),
    [Urgent, Messages | _] = Figures,
    true = Urgent > 0.8,
    true = Messages > 0.8.

%% A stream that has always something to send.
full(B, Priority) ->
    {ok, S} = quic_dist:open_stream(B, [{priority, Priority}]),
    _ = spawn_link(fun() -> Chunk = binary:copy(<<0>>, 65536), (fun Go() -> ok = quic_dist:send(S, Chunk), Go() end)() end),
    S.

%% And the distribution.
messages(Counter) ->
    Payload = binary:copy(<<0>>, 65536),
    spawn_link(fun() -> (fun Go() -> Counter ! {message, Payload}, Go() end)() end).

%% What each stream brings in two seconds in which the machine did not stand still.
window(Counter) -> window(Counter, 5).

window(Counter, Tries) when Tries > 0 ->
    Counter ! {window, self(), 2000},
    receive
        {window, Counts} ->
            case lists:sum(maps:values(Counts)) > 4000000 of
                true -> Counts;
                false -> window(Counter, Tries - 1)
            end
    after 20000 -> error(deadline)
    end.

share(Keys, Counts) ->
    lists:sum([maps:get(Key, Counts, 0) || Key <- Keys]) / lists:sum(maps:values(Counts)).

counter(To, Node) ->
    ok = quic_dist:accept_streams(Node),
    To ! {self(), ready},
    count(#{}, none).

count(Counts, Asked) ->
    receive
        {quic_dist_stream, {_, _, Id}, {data, Data, _}} -> count(add(Id, Data, Counts), Asked);
        {message, Data} -> count(add(message, Data, Counts), Asked);
        {window, From, Ms} -> erlang:send_after(Ms, self(), over), count(#{}, From);
        over -> Asked ! {window, Counts}, count(#{}, none)
    end.

add(Key, Data, Counts) -> maps:update_with(Key, fun(N) -> N + byte_size(Data) end, byte_size(Data), Counts).

%%% Ends

%% Each side of each stream does a few things at random and then finishes, cuts or dies, in a bad network. Whoever lives is told exactly one end
%% of its stream, and nothing is left.
ends_at_every_step(_Config) ->
    {Seed, Ends} = ?S:on_path(#{loss => 0.02, duplicate => 0.01, reorder => 0.05}, [], fun(B) ->
        Seed = erlang:unique_integer([positive]) bxor erlang:system_time(),
        _ = rand:seed(exsss, Seed),
        _ = [?S:on(B, ?MODULE, acceptor, [self(), rand:uniform(1 bsl 30)]) || _ <- lists:seq(1, 3)],
        Me = self(),
        Told = lists:append([begin
            Openers = [begin
                Plan = plan(),
                {Pid, _} = spawn_monitor(fun() ->
                    {ok, S} = quic_dist:open_stream(B),
                    ok = quic_dist:send(S, <<"x">>),
                    run(S, Plan, Me)
                end),
                Pid
            end || _ <- lists:seq(1, 40)],
            [receive {'DOWN', _, process, P, Reason} -> {opener, Reason} after 40000 -> error({seed, Seed, not_told}) end || P <- Openers]
        end || _ <- lists:seq(1, 8)]),
        %% of the other side's as many as streams were not gone before anybody saw them
        ?LIB:wait_until(fun() -> quic_dist:list_streams() =:= [] end, 20000),
        ?LIB:wait_until(fun() -> erpc:call(B, quic_dist, list_streams, []) =:= [] end, 20000),
        Others = others(),
        ok = quic_dist:accept_streams(B),
        {Seed, Told ++ Others}
    end),
    Tally = lists:foldl(fun(End, Counts) -> maps:update_with(End, fun(N) -> N + 1 end, 1, Counts) end, #{}, Ends),
    ct:log("seed ~p: ~p", [Seed, Tally]),
    [] = [End || {_, Reason} = End <- Ends, not expected(Reason)],
    %% all kinds of ends were there, at both sides
    [true = is_map_key({Side, End}, Tally) || Side <- [opener, acceptor], End <- [{told, closed}, {told, {reset, 0}}, {told, {reset, 7}}]],
    true = maps:get({opener, died}, Tally) > 10.

expected(died) -> true;
expected({told, closed}) -> true;
expected({told, {reset, Code}}) -> lists:member(Code, [7, 0]);
expected(_) -> false.

others() -> receive {end_there, Reason} -> [{acceptor, Reason} | others()] after 1000 -> [] end.

plan() -> [step() || _ <- lists:seq(1, rand:uniform(4))] ++ [last()].

step() ->
    case rand:uniform(4) of
        1 -> {send, rand:uniform(1000)};
        2 -> {send, rand:uniform(600000)};
        3 -> {sleep, rand:uniform(20)};
        4 -> move
    end.

last() ->
    case rand:uniform(4) of
        1 -> die;
        2 -> {reset, 7};
        _ -> finish
    end.

%% Sending to what has ended meanwhile is an error, and no more than that.
run(S, [{send, Bytes} | Plan], To) -> _ = quic_dist:send(S, rand:bytes(Bytes)), run(S, Plan, To);
run(S, [{sleep, Ms} | Plan], To) -> timer:sleep(Ms), run(S, Plan, To);
run(S, [{reset, Code} | Plan], To) -> _ = quic_dist:reset_stream(S, Code), run(S, Plan, To);
run(S, [finish | Plan], To) ->
    %% with data, or alone: then maybe when all data has been acknowledged
    _ = case rand:uniform(2) of
        1 -> quic_dist:send(S, <<"end">>, true);
        2 -> quic_dist:close_stream(S)
    end,
    run(S, Plan, To);
run(_S, [die | _], _To) -> exit(died);
run(S, [move | Plan], To) ->
    %% somebody else goes on; whose end it is, is told by whom it was
    {Heir, Ref} = spawn_monitor(fun() -> receive {yours, S} -> run(S, Plan, To) end end),
    case quic_dist:controlling_process(S, Heir) of
        ok ->
            Heir ! {yours, S},
            receive {'DOWN', Ref, process, Heir, Reason} -> exit(Reason) end;
        {error, unknown_stream} ->
            exit(Heir, kill),
            run(S, Plan, To)
    end;
run(S, [], _To) ->
    Told = told(S, 30000),
    %% nothing comes after it
    receive {quic_dist_stream, S, _} = Twice -> exit({Told, Twice}) after 50 -> exit(Told) end.

told(S, Timeout) ->
    receive
        {quic_dist_stream, S, {data, _, _}} -> told(S, Timeout);
        {quic_dist_stream, S, End} -> {told, End}
    after Timeout -> not_told
    end.

%% Gives each stream to a process of its own.
acceptor(To, Seed) ->
    _ = rand:seed(exsss, Seed),
    ok = quic_dist:accept_streams(node(To)),
    To ! {self(), ready},
    accepting(To).

accepting(To) ->
    receive
        {quic_dist_stream, S, {data, _, _}} ->
            Plan = plan(),
            Worker = spawn(fun() ->
                {Runner, Ref} = spawn_monitor(fun() -> receive {yours, S} -> run(S, Plan, To) end end),
                receive {give, From} -> From ! {to, Runner} end,
                receive {given, Given} -> Given =:= ok andalso (Runner ! {yours, S}) end,
                receive {'DOWN', Ref, process, Runner, Reason} -> To ! {end_there, Reason} end
            end),
            Worker ! {give, self()},
            receive
                {to, Runner} ->
                    case quic_dist:controlling_process(S, Runner) of
                        ok -> Worker ! {given, ok};
                        {error, unknown_stream} ->
                            %% it has ended before: the end is ours
                            exit(Worker, kill),
                            To ! {end_there, told(S, 30000)}
                    end
            end,
            accepting(To)
    end.
