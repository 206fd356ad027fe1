%% The order of signals between two real nodes, with single streams held back: between them stands a man in the middle
%% (`quic_dist_holdproxy`) that passes some streams on later than others, so that whatever does not take the same stream as it should
%% is overtaken. Each case is a hazard: a way in which a router that does not know better breaks Erlang's promise.
%% `test/counterexamples` runs these cases against two routers that do not, and sees them fail.
%%
%% The groups differ in how many data streams the two nodes have and in what is held. The test runs on node A, which dials.
-module(order_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2,
         init_per_testcase/2, end_per_testcase/2]).
-export([names/1, names_with_trace_tokens/1, call_then_down_of_name/1, call_then_down_of_pid/1,
         spawn_reply_first/1, spawn_monitor_first/1, spawn_link_first/1, erpc_calls/1,
         fragments_of_several_senders/1, large_spawn_requests/1, large_then_small_then_exit/1,
         exits_after_messages/1, exits_after_messages_to_other_names/1, late_monitors/1,
         link_unlink_races/1, watchers_before_message_to_name/1, group_leader_before_message/1,
         exit_signals_among_messages/1, exit_signals_among_messages_to_name/1, fences_among_messages/1,
         atom_cache/1, total_order/1]).
-import(quic_dist_order_lib, [parallel/2, rounds/2, name/2, next/0, to_all_names/5]).

-define(LIB, quic_dist_test_lib).
-define(ORDER, quic_dist_order_lib).
-define(DEADLINE, ?ORDER:deadline()).
%% Pairs of processes that do the same at once. Each is held in turn, so that together they take little longer than one.
-define(WORKERS, 12).
-define(ROUNDS, 20).

suite() -> [{timetrap, {seconds, 150}}].

hazards() ->
    [names, names_with_trace_tokens, call_then_down_of_name, call_then_down_of_pid,
     spawn_reply_first, spawn_monitor_first, spawn_link_first, erpc_calls,
     fragments_of_several_senders, large_spawn_requests, large_then_small_then_exit,
     exits_after_messages, exits_after_messages_to_other_names, late_monitors,
     link_unlink_races, watchers_before_message_to_name, group_leader_before_message,
     exit_signals_among_messages, exit_signals_among_messages_to_name, fences_among_messages].

%% All groups take two minutes; `make test` takes one of the three that catch every hazard, and the one that keeps the atom cache.
all() ->
    case os:getenv("QUIC_DIST_ORDER") of
        "all" -> [{group, Group} || {Group, _, _} <- groups()];
        _ -> [{group, four_random}, {group, one}]
    end.

groups() ->
    Some = [names, call_then_down_of_name, spawn_reply_first, fragments_of_several_senders, fences_among_messages],
    [{four_rotating, [], hazards() ++ [atom_cache]},
     {four_random, [], hazards()},
     {four_held, [], Some},
     {sixteen, [], hazards() ++ [atom_cache]},
     {one_and_four, [], Some ++ [atom_cache]},
     {sixteen_and_one, [], Some ++ [atom_cache]},
     {one, [], Some ++ [total_order, atom_cache]}].

%% Data streams of A and of B, and what is held.
network(four_rotating) -> {4, 4, ["--rotate", "20"]};
network(four_random) -> {4, 4, ["--random", "1:40"]};
network(four_held) -> {4, 4, ["--hold", "4:80", "--hold", "9:80"]};
network(sixteen) -> {16, 16, ["--rotate", "20", "--streams", "3"]};
network(one_and_four) -> {1, 4, ["--rotate", "20"]};
network(sixteen_and_one) -> {16, 1, ["--rotate", "20"]};
network(one) -> {1, 1, ["--random", "2:20"]}.

init_per_suite(Config) ->
    case ?LIB:carrier() of
        quic -> [{program, quic_dist_holdproxy:build()} | ?LIB:init_suite(Config)];
        _ -> {skip, "the proxy carries QUIC"}
    end.
end_per_suite(Config) -> ?LIB:end_suite(Config).

%% Nothing connects but the case: not global, not a message to a node whose connection a wrong router has broken.
init_per_group(Group, Config) ->
    {StreamsA, StreamsB, Hold} = network(Group),
    [A, B] = ?LIB:start_all([
        #{tag => T, scope => suite,
          args => ["-epmd_module", "quic_dist_test_epmd", "-hidden", "-kernel", "dist_auto_connect", "never",
                   "-quic_dist", "data_streams", integer_to_list(Streams)]}
        || {T, Streams} <- [{"a", StreamsA}, {"b", StreamsB}]]),
    [{a, A}, {b, B}, {peer, ?LIB:node(B)}, {streams, {StreamsA, StreamsB}}, {hold, Hold} | Config].
end_per_group(_Group, Config) ->
    [?LIB:kill(?config(Key, Config)) || Key <- [a, b]],
    ok.

%% Each case has a connection of its own, through a proxy of its own.
init_per_testcase(_Case, Config) ->
    [A, B, Peer] = [?config(Key, Config) || Key <- [a, b, peer]],
    _ = ?LIB:call(B, erlang, disconnect_node, [?LIB:node(A)]),
    ?LIB:disconnect(A, B),
    Alive = hd(string:lexemes(atom_to_list(Peer), "@")),
    {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    Names = ["--dialling", atom_to_list(?LIB:node(A)), "--dialled", atom_to_list(Peer)],
    {Proxy, Port} = quic_dist_holdproxy:start(?config(program, Config), PortB, Names ++ ?config(hold, Config)),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
    ?LIB:connect(A, B),
    [{proxy, Proxy} | Config].
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% Runs the test on node A; it gets the name of node B. It meant something only if streams were held.
on_a(Config, Test) ->
    [A, B, Peer, Proxy] = [?config(Key, Config) || Key <- [a, b, peer, proxy]],
    Result = ?LIB:run(A, fun() -> Test(Peer) end, 120000),
    ?LIB:disconnect(A, B),
    #{late := Late} = Counts = quic_dist_holdproxy:finish(Proxy),
    ct:log("~p", [Counts]),
    true = Late > 0,
    Result.

%% The next message has to be this one.
-define(NEXT(Pattern), (fun() -> case next() of Pattern = EXPECTED -> EXPECTED; OTHER -> error({out_of_order, OTHER, ??Pattern}) end end)()).

%%% One process, several names

names(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(names, N),
            Receiver = spawn(Peer, ?ORDER, receiver, [self(), Name]),
            {ready, Receiver, Alias} = ?NEXT({ready, Receiver, _}),
            to_all_names(Receiver, Name, Peer, Alias, ?ROUNDS),
            exit(Receiver, kill)
        end)
    end).

%% The same with a sequential trace token that comes and goes: other operations, the same promise.
names_with_trace_tokens(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(tokens, N),
            Receiver = spawn(Peer, ?ORDER, receiver, [self(), Name]),
            {ready, Receiver, Alias} = ?NEXT({ready, Receiver, _}),
            Addresses = {Receiver, {Name, Peer}, Alias},
            rounds(?ROUNDS, fun(Round) ->
                [begin
                     _ = case I rem 2 of 0 -> seq_trace:set_token(label, N); 1 -> seq_trace:set_token([]) end,
                     element(1 + (I + Round) rem 3, Addresses) ! {number, (Round - 1) * 9 + I}
                 end || I <- lists:seq(1, 9)],
                element(1 + Round rem 3, Addresses) ! {until, Round * 9},
                _ = seq_trace:set_token([]),
                Last = Round * 9,
                ?NEXT({in_order, Last})
            end),
            exit(Receiver, kill)
        end)
    end).

%%% Replies before DOWN

calls(Config, Tag, Watched) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Host = spawn(Peer, ?ORDER, host, [self()]),
            Name = name(Tag, N),
            rounds(?ROUNDS, fun(_) ->
                Host ! {start, Name},
                {started, Pid} = ?NEXT({started, _}),
                Server = Watched(Name, Peer, Pid),
                Monitor = erlang:monitor(process, Server),
                %% it makes a monitor of its own, and fails if DOWN comes before the reply
                replied = gen_server:call(Server, stop_with_reply, ?DEADLINE),
                ?NEXT({'DOWN', Monitor, process, Server, normal})
            end),
            exit(Host, kill)
        end)
    end).

call_then_down_of_name(Config) -> calls(Config, down_of_name, fun(Name, Peer, _) -> {Name, Peer} end).
call_then_down_of_pid(Config) -> calls(Config, down_of_pid, fun(_, _, Pid) -> Pid end).

%%% A new process

spawn_reply_first(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(parent, N),
            register(Name, self()),
            rounds(?ROUNDS, fun(Round) ->
                Owner = element(1 + Round rem 3, {self(), {Name, node()}, alias([explicit_unalias])}),
                Request = erlang:spawn_request(Peer, ?ORDER, newborn, [[Owner], Round], [monitor]),
                {spawn_reply, Request, ok, Pid} = ?NEXT({spawn_reply, Request, ok, _}),
                ?NEXT({born, Pid, Round}),
                ?NEXT({'DOWN', Request, process, Pid, {dead, Round}})
            end)
        end)
    end).

%% If DOWN came first, it would be for a monitor that is not there yet, and lost.
spawn_monitor_first(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(_) ->
            rounds(?ROUNDS, fun(Round) ->
                Owners = [alias([explicit_unalias]), self()],
                {Pid, Monitor} = spawn_monitor(Peer, ?ORDER, newborn, [Owners, Round]),
                ?NEXT({born, Pid, Round}),
                ?NEXT({born, Pid, Round}),
                ?NEXT({'DOWN', Monitor, process, Pid, {dead, Round}})
            end)
        end)
    end).

spawn_link_first(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(_) ->
            rounds(?ROUNDS, fun(Round) ->
                Pid = spawn_link(Peer, ?ORDER, newborn, [[self()], Round]),
                ?NEXT({born, Pid, Round}),
                ?NEXT({'EXIT', Pid, {dead, Round}})
            end)
        end)
    end).

%% The answer to an erpc call is in the DOWN of a process that has just been spawned.
erpc_calls(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(_) ->
            rounds(?ROUNDS, fun(I) -> I = erpc:call(Peer, erlang, abs, [-I], ?DEADLINE) end)
        end)
    end).

%%% Large messages

%% Messages of many fragments each, from several processes at once, both ways; a small one behind each.
fragments_of_several_senders(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(6, fun(N) ->
            There = spawn_link(Peer, ?ORDER, exchange, [self(), N, 6]),
            ?ORDER:exchange(There, N, 6)
        end)
    end).

%% Arguments in many fragments; the new process's first signals in one.
large_spawn_requests(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(6, fun(N) ->
            Term = binary:copy(<<N>>, 200000),
            rounds(5, fun(_) ->
                Request = erlang:spawn_request(Peer, ?ORDER, newborn, [[self()], Term], [link]),
                {spawn_reply, Request, ok, Pid} = ?NEXT({spawn_reply, Request, ok, _}),
                ?NEXT({born, Pid, Term}),
                ?NEXT({'EXIT', Pid, {dead, Term}})
            end)
        end)
    end).

large_then_small_then_exit(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(6, fun(N) ->
            Large = binary:copy(<<N>>, 300000),
            rounds(5, fun(_) ->
                Pid = spawn(Peer, ?ORDER, talker, [[self()], [Large, small, Large]]),
                link(Pid),
                Pid ! {talk, Large},
                ?NEXT({1, Large}),
                ?NEXT({2, small}),
                ?NEXT({3, Large}),
                ?NEXT({'EXIT', Pid, Large})
            end)
        end)
    end).

%%% Ends

ends(Config, Owners) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(watcher, N),
            register(Name, self()),
            rounds(?ROUNDS, fun(Round) ->
                Pid = spawn(Peer, ?ORDER, talker, [Owners(self(), Name), [a, b, c]]),
                _ = case Round rem 2 of 0 -> link(Pid); 1 -> erlang:monitor(process, Pid) end,
                Pid ! {talk, Round},
                [?NEXT({I, M}) || {I, M} <- [{1, a}, {2, b}, {3, c}]],
                case Round rem 2 of
                    0 -> ?NEXT({'EXIT', Pid, Round});
                    1 -> ?NEXT({'DOWN', _, process, Pid, Round})
                end
            end)
        end)
    end).

exits_after_messages(Config) -> ends(Config, fun(Pid, _) -> [Pid] end).

exits_after_messages_to_other_names(Config) -> ends(Config, fun all_names/2).

%% Of the calling process.
all_names(Pid, Name) -> [{Name, node()}, alias([explicit_unalias]), Pid].

%% A monitor that may come when the process is no more: DOWN is then of the node's making, and still comes after all that
%% the process sent.
late_monitors(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(late, N),
            register(Name, self()),
            rounds(?ROUNDS, fun(Round) ->
                Pid = spawn(Peer, ?ORDER, talker, [all_names(self(), Name), [a, b, c]]),
                Pid ! {talk, gone},
                timer:sleep(Round rem 4 * 5),
                Monitor = erlang:monitor(process, Pid),
                [?NEXT({I, M}) || {I, M} <- [{1, a}, {2, b}, {3, c}]],
                {'DOWN', Monitor, process, Pid, Why} = ?NEXT({'DOWN', Monitor, process, Pid, _}),
                true = Why =:= gone orelse Why =:= noproc
            end)
        end)
    end).

%%% Links, monitors and group leaders before messages

link_unlink_races(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(_) ->
            rounds(?ROUNDS, fun(Round) ->
                Pid = spawn(Peer, ?ORDER, obedient, [self(), none]),
                ?NEXT({ready, Pid}),
                [begin link(Pid), unlink(Pid) end || _ <- lists:seq(1, Round rem 4)],
                link(Pid),
                Pid ! {exit, {round, Round}},
                ?NEXT({'EXIT', Pid, {round, Round}})
            end)
        end)
    end).

%% The link, or the monitor, must be there when the message comes, whatever name that is sent to.
watchers_before_message_to_name(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            rounds(?ROUNDS, fun(Round) ->
                Name = name(watched, lists:concat([N, "_", Round])),
                Pid = spawn(Peer, ?ORDER, obedient, [self(), Name]),
                ?NEXT({ready, Pid}),
                _ = case Round rem 2 of 0 -> link(Pid); 1 -> erlang:monitor(process, Pid) end,
                {Name, Peer} ! {exit, {round, Round}},
                case Round rem 2 of
                    0 -> ?NEXT({'EXIT', Pid, {round, Round}});
                    1 -> ?NEXT({'DOWN', _, process, Pid, {round, Round}})
                end
            end)
        end)
    end).

%% The signal names the new leader and the process that gets it, not the one that sends it.
group_leader_before_message(Config) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(led, N),
            Pid = spawn(Peer, ?ORDER, obedient, [self(), Name]),
            ?NEXT({ready, Pid}),
            rounds(?ROUNDS, fun(Round) ->
                Leader = spawn(fun() -> receive never -> ok end end),
                true = group_leader(Leader, Pid),
                element(1 + Round rem 2, {Pid, {Name, Peer}}) ! leader,
                ?NEXT({leader, Leader}),
                exit(Leader, kill)
            end),
            exit(Pid, kill)
        end)
    end).

%%% exit/2

exit_signals(Config, Tag, To) ->
    on_a(Config, fun(Peer) ->
        parallel(?WORKERS, fun(N) ->
            Name = name(Tag, N),
            Pid = spawn(Peer, ?ORDER, trapping, [self(), Name, 8]),
            ?NEXT({ready, Pid}),
            Expected = lists:seq(1, 8),
            rounds(?ROUNDS, fun(_) ->
                [case I rem 2 of
                     0 -> exit(Pid, {number, I});
                     1 -> To(Pid, Name, Peer) ! {number, I}
                 end || I <- Expected],
                ?NEXT({got, Expected})
            end),
            exit(Pid, kill)
        end)
    end).

exit_signals_among_messages(Config) -> exit_signals(Config, trap, fun(Pid, _, _) -> Pid end).
exit_signals_among_messages_to_name(Config) -> exit_signals(Config, trap_name, fun(_, Name, Peer) -> {Name, Peer} end).

%%% What has no sender

%% Signals that have to be ordered against every stream, many of them, both ways, among messages: all arrive, and the messages in order.
fences_among_messages(Config) ->
    on_a(Config, fun(Peer) ->
        Disturb = fun(_) ->
            Other = spawn(Peer, ?ORDER, obedient, [self(), none]),
            ?NEXT({ready, Other}),
            rounds(?ROUNDS, fun(_) ->
                %% from there: DOWN of a name that nobody has, and of a spawn that fails
                Monitor = erlang:monitor(process, {order_no_such_name, Peer}),
                ?NEXT({'DOWN', Monitor, process, {order_no_such_name, Peer}, noproc}),
                Request = erlang:spawn_request(Peer, ?ORDER, no_such_function, [], [no_such_option]),
                ?NEXT({spawn_reply, Request, error, badopt}),
                %% from here
                true = group_leader(self(), Other)
            end),
            exit(Other, kill)
        end,
        Talk = fun(N) ->
            Name = name(fenced, N),
            Receiver = spawn(Peer, ?ORDER, receiver, [self(), Name]),
            {ready, Receiver, Alias} = ?NEXT({ready, Receiver, _}),
            to_all_names(Receiver, Name, Peer, Alias, 2 * ?ROUNDS),
            exit(Receiver, kill)
        end,
        parallel(2 * ?WORKERS, fun(N) when N rem 2 =:= 0 -> Disturb(N); (N) -> Talk(N) end)
    end).

%%% Numbers of streams

%% The atom cache is in use, however many streams there are. It is seen in the packets that B's controller gets.
atom_cache(Config) ->
    [A, B, Peer] = [?config(Key, Config) || Key <- [a, b, peer]],
    NodeA = ?LIB:node(A),
    [begin
         Watch = ?LIB:run(Watcher, fun() -> ?ORDER:watch_input(Other) end),
         ok = ?LIB:run(Sender, fun() -> [{order_nobody, SendsTo} ! {an_atom, another_atom, I} || I <- lists:seq(1, 50)], ok end),
         Packets = ?LIB:run(Watcher, fun() -> ?ORDER:packets_of(Watch, 50) end),
         ct:log("~p", [lists:sublist(Packets, 45, 3)]),
         Cached = [P || <<131, Kind, References, _/binary>> = P <- Packets, Kind =:= 68, References > 0],
         {SendsTo, true} = {SendsTo, length(Cached) > 40}
     end || {Sender, Watcher, SendsTo, Other} <- [{A, B, Peer, NodeA}, {B, A, NodeA, Peer}]],
    on_a(Config, fun(Peer1) -> parallel(10, fun(_) -> 1 = erpc:call(Peer1, erlang, abs, [-1], ?DEADLINE), timer:sleep(20) end) end).

%% What one TCP connection gives and Erlang does not promise: an order between the messages of different processes, if one was sent
%% after the other.
total_order(Config) ->
    on_a(Config, fun(Peer) ->
        Receiver = spawn(Peer, ?ORDER, receiver, [self(), order_total]),
        ?NEXT({ready, Receiver, _}),
        Count = 2000,
        Ring = [spawn_link(fun() -> ?ORDER:relay(Receiver) end) || _ <- lists:seq(1, 7)],
        [P ! {next, Q} || {P, Q} <- lists:zip(Ring, tl(Ring) ++ [hd(Ring)])],
        hd(Ring) ! {number, 1, Count, self()},
        ?NEXT(all_sent),
        Receiver ! {until, Count},
        ?NEXT({in_order, Count}),
        [begin unlink(P), exit(P, kill) end || P <- [Receiver | Ring]],
        ok
    end).
