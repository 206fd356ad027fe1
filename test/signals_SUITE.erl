%% What processes on two nodes may rely on: every kind of signal arrives, with the reason the documentation gives, in the order that
%% Erlang promises; and connections that go away are noticed by all who watch. One pair of nodes serves all the cases.
-module(signals_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([links/1, monitors/1, exit_signals/1, group_leader_output/1, spawns/1, spawn_request/1, aliases/1, registered_names/1,
         erpc_calls/1, gen_servers/1, nodedown_of_everything/1,
         order_one_sender/1, order_many_senders/1, order_across_names/1, order_reply_before_down/1, order_spawn_reply_first/1,
         order_after_large/1]).
%% run on the nodes
-export([collect/2, talker/2, name_holder/1]).

-define(LIB, quic_dist_test_lib).
-define(DEADLINE, 20000).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [links, monitors, exit_signals, group_leader_output, spawns, spawn_request, aliases, registered_names, erpc_calls, gen_servers,
     nodedown_of_everything,
     order_one_sender, order_many_senders, order_across_names, order_reply_before_down, order_spawn_reply_first, order_after_large].

init_per_suite(Config) ->
    _ = ?LIB:init_suite(Config),
    [A, B] = ?LIB:start_all([#{tag => T, scope => suite} || T <- ["a", "b"]]),
    [{a, A}, {b, B}, {peer, ?LIB:node(B)} | Config].
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(_Case, Config) ->
    ?LIB:connect(?config(a, Config), ?config(b, Config)),
    Config.
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% Runs the test on node A; it gets the name of node B.
on_a(Config, Test) ->
    Peer = ?config(peer, Config),
    ?LIB:run(?config(a, Config), fun() -> Test(Peer) end, 60000).

%% The next message, which must be this one.
-define(EXPECT(Pattern), (fun() -> receive Pattern = EXPECTED -> EXPECTED; OTHER -> error({unexpected, OTHER, ??Pattern})
                                   after ?DEADLINE -> error({deadline, ??Pattern}) end end)()).
-define(SILENCE(Ms), receive NOISE -> error({unexpected, NOISE}) after Ms -> ok end).

wait_forever() -> receive never -> ok end.

%%% Links, monitors, exits

links(Config) ->
    on_a(Config, fun(Peer) ->
        process_flag(trap_exit, true),
        %% the other end exits
        Pid = spawn_link(Peer, fun() -> receive Why -> exit(Why) end end),
        Pid ! {some, reason},
        ?EXPECT({'EXIT', Pid, {some, reason}}),
        %% this end exits: a process there, linked to one here, gets the signal
        Me = self(),
        Watcher = spawn(Peer, fun() ->
            process_flag(trap_exit, true),
            Me ! {ready, self()},
            receive {'EXIT', From, Reason} -> Me ! {saw, From, Reason} end
        end),
        ?EXPECT({ready, Watcher}),
        Here = spawn(fun() -> link(Watcher), exit(over_here) end),
        ?EXPECT({saw, Here, over_here}),
        %% unlink is effective at once
        Unlinked = spawn_link(Peer, fun() -> receive Why -> exit(Why) end end),
        true = unlink(Unlinked),
        Unlinked ! boom,
        %% link and unlink again and again do not confuse the two nodes about the state of a link
        Relinked = spawn(Peer, fun() -> receive Why -> exit(Why) end end),
        [begin link(Relinked), unlink(Relinked) end || _ <- lists:seq(1, 200)],
        link(Relinked),
        Relinked ! linked_after_all,
        ?EXPECT({'EXIT', Relinked, linked_after_all}),
        %% a link to a process that is no more
        true = link(Pid),
        ?EXPECT({'EXIT', Pid, noproc}),
        ?SILENCE(50)
    end).

monitors(Config) ->
    on_a(Config, fun(Peer) ->
        Pid = spawn(Peer, fun() -> receive Why -> exit(Why) end end),
        [M1, M2] = [erlang:monitor(process, Pid) || _ <- [1, 2]],
        true = erlang:demonitor(M2),
        Pid ! gone,
        ?EXPECT({'DOWN', M1, process, Pid, gone}),
        M3 = erlang:monitor(process, Pid),
        ?EXPECT({'DOWN', M3, process, Pid, noproc}),
        %% by name
        Holder = spawn(Peer, ?MODULE, name_holder, [self()]),
        ?EXPECT({registered, Holder}),
        M4 = erlang:monitor(process, {signals_name, Peer}),
        Holder ! {exit, by_name},
        ?EXPECT({'DOWN', M4, process, {signals_name, Peer}, by_name}),
        M5 = erlang:monitor(process, {signals_no_such_name, Peer}),
        ?EXPECT({'DOWN', M5, process, {signals_no_such_name, Peer}, noproc}),
        %% with a tag of one's own; many at once
        Pids = [spawn(Peer, fun() -> receive Why -> exit(Why) end end) || _ <- lists:seq(1, 500)],
        Tagged = [{erlang:monitor(process, P, [{tag, {my_tag, P}}]), P} || P <- Pids],
        [P ! {bye, P} || P <- Pids],
        [receive {{my_tag, P}, M, process, P, {bye, P}} -> ok after ?DEADLINE -> error(deadline) end || {M, P} <- Tagged],
        ?SILENCE(50)
    end).

-spec name_holder(pid()) -> no_return().
name_holder(Owner) ->
    register(signals_name, self()),
    Owner ! {registered, self()},
    name_holder_loop(Owner).

name_holder_loop(Owner) ->
    receive
        {exit, Why} -> exit(Why);
        Other -> Owner ! {got, self(), Other}, name_holder_loop(Owner)
    end.

exit_signals(Config) ->
    on_a(Config, fun(Peer) ->
        Start = fun(Flag) ->
            Me = self(),
            {Pid, Monitor} = spawn_monitor(Peer, fun() ->
                process_flag(trap_exit, Flag),
                Me ! {up, self()},
                receive {'EXIT', From, Why} -> Me ! {trapped, self(), From, Why}, wait_forever() end
            end),
            ?EXPECT({up, Pid}),
            {Pid, Monitor}
        end,
        {P1, M1} = Start(false),
        exit(P1, normal),
        exit(P1, {big, lists:seq(1, 1000)}),
        Big = {big, lists:seq(1, 1000)},
        ?EXPECT({'DOWN', M1, process, P1, Big}),
        {P2, M2} = Start(true),
        Me = self(),
        exit(P2, trap_me),
        ?EXPECT({trapped, P2, Me, trap_me}),
        exit(P2, kill),
        ?EXPECT({'DOWN', M2, process, P2, killed}),
        %% a reason that takes many packets
        {P3, M3} = Start(false),
        Huge = binary:copy(<<"reason">>, 200000),
        exit(P3, Huge),
        ?EXPECT({'DOWN', M3, process, P3, Huge}),
        ?SILENCE(20)
    end).

%% A process started from here prints here, wherever it runs.
group_leader_output(Config) ->
    on_a(Config, fun(Peer) ->
        Me = self(),
        Leader = spawn(fun() -> leader(Me, []) end),
        group_leader(Leader, self()),
        Pid = spawn(Peer, fun() -> io:format("hello from ~p ~ts", [node(), [16#1F427]]), io:put_chars(binary:copy(<<"x">>, 100000)) end),
        Text = unicode:characters_to_binary(io_lib:format("hello from ~p ~ts", [Peer, [16#1F427]])),
        Xs = binary:copy(<<"x">>, 100000),
        ?EXPECT({printed, Pid, Text}),
        ?EXPECT({printed, Pid, Xs}),
        %% changed from afar
        Idle = spawn(Peer, fun() -> receive {go, From} -> From ! {leader, group_leader()} end end),
        Other = spawn(fun wait_forever/0),
        true = group_leader(Other, Idle),
        Idle ! {go, self()},
        ?EXPECT({leader, Other}),
        [exit(P, kill) || P <- [Leader, Other]]
    end).

leader(Owner, _) ->
    receive
        {io_request, From, As, {put_chars, unicode, M, F, A}} -> printed(Owner, From, As, apply(M, F, A));
        {io_request, From, As, {put_chars, unicode, Chars}} -> printed(Owner, From, As, Chars)
    end.

printed(Owner, From, As, Chars) ->
    From ! {io_reply, As, ok},
    Owner ! {printed, From, unicode:characters_to_binary(Chars)},
    leader(Owner, []).

%%% Spawning

spawns(Config) ->
    on_a(Config, fun(Peer) ->
        process_flag(trap_exit, true),
        Me = self(),
        P1 = spawn(Peer, erlang, send, [Me, {from, mfa}]),
        true = Peer =:= node(P1),
        ?EXPECT({from, mfa}),
        P2 = spawn_link(Peer, fun() -> exit(linked) end),
        ?EXPECT({'EXIT', P2, linked}),
        {P3, M3} = spawn_monitor(Peer, fun() -> exit(monitored) end),
        ?EXPECT({'DOWN', M3, process, P3, monitored}),
        {P4, M4} = spawn_opt(Peer, fun() -> receive go -> exit(both) end end, [link, monitor, {priority, high}, {min_heap_size, 1000}]),
        P4 ! go,
        Ends = lists:sort([receive M -> M after ?DEADLINE -> error(deadline) end || _ <- [1, 2]]),
        true = lists:sort([{'EXIT', P4, both}, {'DOWN', M4, process, P4, both}]) =:= Ends,
        {P5, M5} = spawn_monitor(Peer, no_such_module, f, []),
        {'DOWN', M5, process, P5, {undef, _}} = receive D -> D after ?DEADLINE -> error(deadline) end,
        %% arguments that take many packets
        Arg = rand:bytes(1 bsl 20),
        spawn(Peer, erlang, send, [Me, {arg, Arg}]),
        ?EXPECT({arg, Arg}),
        ?SILENCE(20)
    end).

spawn_request(Config) ->
    on_a(Config, fun(Peer) ->
        R1 = erlang:spawn_request(Peer, fun wait_forever/0, [link, monitor]),
        {spawn_reply, R1, ok, P1} = receive M1 -> M1 after ?DEADLINE -> error(deadline) end,
        true = unlink(P1),
        exit(P1, kill),
        ?EXPECT({'DOWN', R1, process, P1, killed}),
        R2 = erlang:spawn_request(Peer, fun wait_forever/0, [{reply_tag, my_reply}]),
        {my_reply, R2, ok, P2} = receive M2 -> M2 after ?DEADLINE -> error(deadline) end,
        exit(P2, kill),
        R3 = erlang:spawn_request(Peer, erlang, send, [self(), no_reply_wanted], [{reply, no}]),
        true = is_reference(R3),
        ?EXPECT(no_reply_wanted),
        R4 = erlang:spawn_request(Peer, fun wait_forever/0, [bad_option]),
        ?EXPECT({spawn_reply, R4, error, badopt}),
        R5 = erlang:spawn_request(Peer, fun wait_forever/0, []),
        _ = erlang:spawn_request_abandon(R5),
        %% abandoned just after the reply came is as good: but nothing else comes
        receive {spawn_reply, R5, ok, _} -> ok after 100 -> ok end,
        Requests = [erlang:spawn_request(Peer, fun() -> exit(done) end, [monitor]) || _ <- lists:seq(1, 300)],
        [begin
             receive {spawn_reply, R, ok, P} -> receive {'DOWN', R, process, P, done} -> ok after ?DEADLINE -> error(deadline) end
             after ?DEADLINE -> error(deadline)
             end
         end || R <- Requests],
        ?SILENCE(20)
    end).

aliases(Config) ->
    on_a(Config, fun(Peer) ->
        Echo = spawn(Peer, fun() -> talker(echo, 0) end),
        Alias = alias(),
        Echo ! {Alias, one},
        ?EXPECT({echo, one}),
        true = unalias(Alias),
        Echo ! {Alias, two},
        Echo ! {self(), three},
        ?EXPECT({echo, three}),
        Once = alias([reply]),
        Echo ! {Once, four},
        Echo ! {Once, five},
        Echo ! {self(), six},
        ?EXPECT({echo, four}),
        ?EXPECT({echo, six}),
        %% the alias of a monitor goes with it
        Monitor = erlang:monitor(process, Echo, [{alias, reply_demonitor}]),
        Echo ! {Monitor, seven},
        ?EXPECT({echo, seven}),
        Echo ! stop,
        ?SILENCE(50)
    end).

-spec talker(atom(), non_neg_integer()) -> ok.
talker(Tag, Count) ->
    receive
        {To, Term} -> To ! {Tag, Term}, talker(Tag, Count + 1);
        stop -> ok
    end.

registered_names(Config) ->
    on_a(Config, fun(Peer) ->
        Holder = spawn(Peer, ?MODULE, name_holder, [self()]),
        ?EXPECT({registered, Holder}),
        {signals_name, Peer} ! bang,
        ?EXPECT({got, Holder, bang}),
        ok = erlang:send({signals_name, Peer}, send3, [noconnect]),
        ?EXPECT({got, Holder, send3}),
        ok = erlang:send({signals_name, Peer}, nosuspend, [nosuspend]),
        ?EXPECT({got, Holder, nosuspend}),
        {signals_no_such_name, Peer} ! into_the_void,
        %% unicode and long names
        Name = list_to_atom(lists:duplicate(255, 16#E5)),
        Long = spawn(Peer, fun() -> register(Name, self()), talker(long, 0) end),
        ?LIB:wait_until(fun() -> rpc:call(Peer, erlang, whereis, [Name]) =:= Long end, 5000),
        {Name, Peer} ! {self(), hi},
        ?EXPECT({long, hi}),
        Long ! stop,
        Holder ! {exit, normal},
        ?SILENCE(20)
    end).

%%% Calls

erpc_calls(Config) ->
    on_a(Config, fun(Peer) ->
        Peer = erpc:call(Peer, erlang, node, []),
        {caught, throw, ball} = try erpc:call(Peer, fun() -> throw(ball) end) catch C1:R1 -> {caught, C1, R1} end,
        {caught, exit, {exception, why}} = try erpc:call(Peer, fun() -> exit(why) end) catch C2:R2 -> {caught, C2, R2} end,
        {caught, error, {exception, badarith, [_ | _]}} = try erpc:call(Peer, erlang, '+', [1, a]) catch C3:R3 -> {caught, C3, R3} end,
        {caught, error, {erpc, timeout}} = try erpc:call(Peer, timer, sleep, [5000], 50) catch C4:R4 -> {caught, C4, R4} end,
        Requests = [erpc:send_request(Peer, erlang, '+', [I, I]) || I <- lists:seq(1, 500)],
        true = [2 * I || I <- lists:seq(1, 500)] =:= [erpc:receive_response(R, ?DEADLINE) || R <- Requests],
        [{ok, Here}, {ok, Peer}] = erpc:multicall([node(), Peer], erlang, node, []),
        true = Here =:= node(),
        ok = erpc:cast(Peer, erlang, send, [self(), casted]),
        ?EXPECT(casted),
        %% many callers at once
        Callers = [spawn_monitor(fun() -> [I = erpc:call(Peer, erlang, abs, [-I]) || I <- lists:seq(1, 100)], exit(fine) end) || _ <- lists:seq(1, 16)],
        [receive {'DOWN', M, process, P, Why} -> fine = Why after ?DEADLINE -> error(deadline) end || {P, M} <- Callers],
        {badrpc, {'EXIT', _}} = rpc:call(Peer, erlang, error, [oops])
    end).

gen_servers(Config) ->
    on_a(Config, fun(Peer) ->
        {ok, Pid} = erpc:call(Peer, quic_dist_test_server, start, [signals_server]),
        To = {signals_server, Peer},
        Large = rand:bytes(300000),
        [{T, S} = {gen_server:call(S, {echo, T}), S} || S <- [Pid, To], T <- [small, Large, #{map => [1.5, "s"]}]],
        [gen_server:cast(To, I) || I <- lists:seq(1, 1000)],
        true = lists:seq(1, 1000) =:= gen_server:call(To, casts),
        {caught, {timeout, _}} = try gen_server:call(To, never, 50) catch exit:R1 -> {caught, R1} end,
        [gen_server:send_request(To, {echo, hi}) || _ <- [1]],
        {Replies, []} = gen_server:multi_call([Peer], signals_server, {echo, multi}, 10000),
        [{Peer, multi}] = Replies,
        true = lists:all(fun(R) -> R =:= y end, [y || _ <- lists:seq(1, 200), gen_server:call(To, {echo, y}) =:= y]),
        {caught, {noproc, _}} = try gen_server:call({signals_no_server, Peer}, x) catch exit:R2 -> {caught, R2} end,
        replied = gen_server:call(To, stop_with_reply),
        ok
    end).

%%% The connection goes

nodedown_of_everything(Config) ->
    on_a(Config, fun(Peer) ->
        process_flag(trap_exit, true),
        {ok, Server} = erpc:call(Peer, quic_dist_test_server, start, [signals_server]),
        Linked = spawn_link(Peer, fun wait_forever/0),
        {Watched, M1} = spawn_monitor(Peer, fun wait_forever/0),
        M2 = erlang:monitor(process, {signals_server, Peer}),
        true = monitor_node(Peer, true),
        Me = self(),
        Sleep = fun() -> Me ! asleep, timer:sleep(60000) end,
        Callers = [spawn_monitor(fun() -> exit({result, try Call() catch C:R -> {C, R} end}) end) || Call <- [
            fun() -> gen_server:call({signals_server, Peer}, never, infinity) end,
            fun() -> erpc:call(Peer, Sleep) end,
            fun() -> rpc:call(Peer, erlang, apply, [Sleep, []]) end]],
        %% each of them waits for its answer
        [receive asleep -> ok after ?DEADLINE -> error({deadline, asleep}) end || _ <- [1, 2]],
        {Caller, _} = hd(Callers),
        ?LIB:wait_until(calling, fun() -> process_info(Caller, monitors) =:= {monitors, [{process, {signals_server, Peer}}]}
                                              andalso process_info(Caller, status) =:= {status, waiting} end, ?DEADLINE),
        Disconnector = spawn_link(fun() -> true = erlang:disconnect_node(Peer), exit(disconnected) end),
        Got = [receive {'DOWN', M, process, P, {result, R}} -> R after ?DEADLINE -> error({deadline, callers}) end || {P, M} <- Callers],
        [{exit, {{nodedown, Peer}, _}}, {error, {erpc, noconnection}}, {badrpc, nodedown}] = Got,
        [receive Message -> ok after ?DEADLINE -> error({deadline, Message}) end
         || Message <- [{'EXIT', Disconnector, disconnected}, {'EXIT', Linked, noconnection}, {'DOWN', M1, process, Watched, noconnection},
                        {'DOWN', M2, process, {signals_server, Peer}, noconnection}, {nodedown, Peer}]],
        ?SILENCE(20),
        %% the processes there live on, and the next signal connects again
        ?LIB:wait_until(reconnect, fun() -> net_kernel:connect_node(Peer) =:= true end, 10000),
        true = erpc:call(Peer, erlang, is_process_alive, [Watched]),
        [exit(P, kill) || P <- [Watched, Server, Linked]],
        ok
    end).

%%% Order

%% Sends what it receives to nobody, but tells Owner whether {Sender, N} came with N from 1 to Count for each sender.
-spec collect(pid(), [{term(), non_neg_integer()}]) -> term().
collect(Owner, Counts) -> collect_loop(Owner, maps:from_list([{S, {1, C}} || {S, C} <- Counts])).

collect_loop(Owner, Waiting) when map_size(Waiting) =:= 0 -> Owner ! {self(), in_order};
collect_loop(Owner, Waiting) ->
    receive
        {Sender, N, _} ->
            case Waiting of
                #{Sender := {N, N}} -> collect_loop(Owner, maps:remove(Sender, Waiting));
                #{Sender := {N, Count}} -> collect_loop(Owner, Waiting#{Sender := {N + 1, Count}});
                _ -> Owner ! {self(), {out_of_order, Sender, N, Waiting}}
            end
    after ?DEADLINE ->
        Owner ! {self(), {missing, Waiting}}
    end.

order_one_sender(Config) ->
    on_a(Config, fun(Peer) ->
        Receiver = spawn(Peer, ?MODULE, collect, [self(), [{x, 100000}]]),
        [Receiver ! {x, I, []} || I <- lists:seq(1, 100000)],
        ?EXPECT({Receiver, in_order})
    end).

%% Both ways at once, small and large mixed.
order_many_senders(Config) ->
    on_a(Config, fun(Peer) ->
        Me = self(),
        Count = 3000,
        Senders = lists:seq(1, 8),
        There = spawn(Peer, ?MODULE, collect, [Me, [{S, Count} || S <- Senders]]),
        Here = spawn(?MODULE, collect, [Me, [{S, Count} || S <- Senders]]),
        Send = fun(To, S) ->
            fun() -> [To ! {S, I, case I rem 50 of 0 -> binary:copy(<<S>>, 1000 * S * (I rem 7)); _ -> S end} || I <- lists:seq(1, Count)] end
        end,
        [begin spawn_link(Send(There, S)), spawn_link(Peer, Send(Here, S)) end || S <- Senders],
        [receive {P, Result} -> in_order = Result after 2 * ?DEADLINE -> error(deadline) end || P <- [There, Here]]
    end).

%% One process, addressed by its pid, its name and an alias in turn: still one receiver.
order_across_names(Config) ->
    on_a(Config, fun(Peer) ->
        Me = self(),
        Receiver = spawn(Peer, fun() ->
            register(signals_receiver, self()),
            Me ! {alias, self(), alias()},
            collect(Me, [{x, 30000}])
        end),
        {alias, Receiver, Alias} = ?EXPECT({alias, Receiver, _}),
        [case I rem 3 of
             0 -> Receiver ! {x, I, []};
             1 -> {signals_receiver, Peer} ! {x, I, []};
             2 -> Alias ! {x, I, []}
         end || I <- lists:seq(1, 30000)],
        ?EXPECT({Receiver, in_order})
    end).

%% The reply to a call comes from the server's pid, DOWN from its name: if DOWN overtook the reply, an answered call would fail.
order_reply_before_down(Config) ->
    on_a(Config, fun(Peer) ->
        [begin
             {ok, _} = erpc:call(Peer, quic_dist_test_server, start, [signals_stopping]),
             Monitor = erlang:monitor(process, {signals_stopping, Peer}),
             {I, replied} = {I, gen_server:call({signals_stopping, Peer}, stop_with_reply)},
             receive {'DOWN', Monitor, process, {signals_stopping, Peer}, Why} -> normal = Why after ?DEADLINE -> error(deadline) end
         end || I <- lists:seq(1, 500)],
        ok
    end).

%% Whatever a new process sends comes after the reply that tells of its birth.
order_spawn_reply_first(Config) ->
    on_a(Config, fun(Peer) ->
        Me = self(),
        [begin
             R = erlang:spawn_request(Peer, fun() -> Me ! {born, self()}, exit({dead, I}) end, [monitor]),
             {spawn_reply, R, ok, Pid} = receive M1 -> M1 after ?DEADLINE -> error(deadline) end,
             ?EXPECT({born, Pid}),
             {'DOWN', R, process, Pid, {dead, I}} = receive M2 -> M2 after ?DEADLINE -> error(deadline) end
         end || I <- lists:seq(1, 1000)],
        ok
    end).

%% A message of many fragments, then a small one, then an exit signal: from one sender, so in this order.
order_after_large(Config) ->
    on_a(Config, fun(Peer) ->
        Me = self(),
        Large = rand:bytes(5000000),
        [begin
             {Pid, Monitor} = spawn_monitor(Peer, fun() -> Me ! {large, Large}, Me ! {small, I}, exit({done, Large}) end),
             receive M1 -> {large, Large} = M1 after ?DEADLINE -> error(deadline) end,
             receive M2 -> {small, I} = M2 after ?DEADLINE -> error(deadline) end,
             receive M3 -> {'DOWN', Monitor, process, Pid, {done, Large}} = M3 after ?DEADLINE -> error(deadline) end
         end || I <- lists:seq(1, 10)],
        ok
    end).
