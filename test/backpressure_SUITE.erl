%% A sender that offers far more than the receiver takes: memory of both nodes stays within limits, senders are suspended as the
%% VM promises (busy_dist_port), nothing is lost, and all arrives in order once the receiver goes on.
%%
%% The limits: what may be held on the way is the VM's own queue (+zdbbl, 1 MiB) plus one message, the connection's send queue
%% (4 MiB), the flow-control windows (16 MiB) and the receive budget (4 MiB), see docs/architecture.md; ?LIMIT leaves room for the
%% allocators.
-module(backpressure_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([input_handler_held/1, many_senders_held/1, beam_stopped/1, held_one_way_only/1, nosuspend_says_so/1,
         disconnect_while_held/1, small_flood/1, small_beside_large/1]).
%% run on the nodes
-export([send_numbered/3, receive_numbered/3, watch_busy/0, busy_count/0, hold_input/1, receive_all/0, echo/0]).

-define(LIB, quic_dist_test_lib).
-define(MIB, 1048576).
-define(LIMIT, 64 * ?MIB).
-define(OFFERED, 1024).
%% so often, 20 ms apart, must everything have stood still before it counts as held
-define(STILL, 50).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [input_handler_held, many_senders_held, beam_stopped, held_one_way_only, nosuspend_says_so, disconnect_while_held,
          small_beside_large, small_flood].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) ->
    NoHandler = "inet_tcp has no process that takes what comes",
    ?LIB:init_case(Case, [{small_beside_large, "inet_tcp has no controller process"}
                          | [{C, NoHandler} || C <- [input_handler_held, many_senders_held, held_one_way_only]]], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% A long tick time: nobody may take a held node for a dead one.
pair() ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-kernel", "net_ticktime", "300"]} || T <- ["sender", "held"]]),
    ?LIB:connect(A, B),
    ok = ?LIB:call(A, ?MODULE, watch_busy, []),
    {A, ?LIB:node(A), B, ?LIB:node(B)}.

%%% Cases

input_handler_held(_Config) ->
    {A, _, B, _} = pair(),
    held(A, B, 1, ?OFFERED, ?MIB, fun() -> hold(B, A) end).

many_senders_held(_Config) ->
    {A, _, B, _} = pair(),
    held(A, B, 16, 20000, 3000, fun() -> hold(B, A) end).

beam_stopped(_Config) ->
    {A, _, B, _} = pair(),
    held(A, B, 4, ?OFFERED div 4, ?MIB, fun() ->
        ?LIB:signal(B, "STOP"),
        fun() -> ?LIB:signal(B, "CONT") end
    end).

%% Offers Senders * Count messages of Size bytes while Hold holds the receiver; Hold gives what ends it.
held(A, B, Senders, Count, Size, Hold) ->
    Payload = Size - 8,
    warm_up(A, B),
    Base = ?LIB:run(A, fun() -> rand:bytes(Payload) end),
    Receivers = [?LIB:run(B, fun() -> spawn(?MODULE, receive_numbered, [Base, Count, 1]) end) || _ <- lists:seq(1, Senders)],
    Before = [?LIB:rss(H) || H <- [A, B]],
    Busy = ?LIB:call(A, ?MODULE, busy_count, []),
    Release = Hold(),
    Pids = [?LIB:run(A, fun() -> spawn(?MODULE, send_numbered, [R, Base, Count]) end) || R <- Receivers],
    Peak = watch_until_still(A, B, Pids, Before),
    ct:log("resident bytes before ~p, at most while held ~p", [Before, Peak]),
    [true = P - W < ?LIMIT || {P, W} <- lists:zip(Peak, Before)],
    %% all of them are suspended, by the VM
    [suspended = status(A, P) || P <- Pids],
    true = ?LIB:call(A, ?MODULE, busy_count, []) > Busy,
    ok = Release(),
    [done = result(B, R, 60000) || R <- Receivers],
    [?LIB:wait_until(sender_done, fun() -> status(A, P) =:= gone end, 10000) || P <- Pids],
    %% the node that offered a gibibyte did not keep it
    ?LIB:wait_until(sender_memory, fun() -> ?LIB:rss(A) - hd(Before) < ?LIMIT end, 10000).

%% Grows what grows once: heaps, allocator carriers, the engine's buffers.
warm_up(A, B) ->
    Base = ?LIB:run(A, fun() -> rand:bytes(?MIB) end),
    R = ?LIB:run(B, fun() -> spawn(?MODULE, receive_numbered, [Base, 64, 1]) end),
    _ = ?LIB:run(A, fun() -> send_numbered(R, Base, 64) end),
    done = result(B, R, 30000),
    _ = [ok = ?LIB:collect(H) || H <- [A, B]],
    ok.

%% The most that was resident until no sender had got on for a while.
watch_until_still(A, B, Pids, Before) ->
    Deadline = erlang:monotonic_time(millisecond) + 30000,
    watch(A, B, Pids, Before, undefined, 0, Deadline).

watch(_, _, _, Peak, _, ?STILL, _) -> Peak;
watch(A, B, Pids, Peak0, Last, Still, Deadline) ->
    true = erlang:monotonic_time(millisecond) < Deadline,
    timer:sleep(20),
    Peak = [max(P, ?LIB:rss(H)) || {P, H} <- lists:zip(Peak0, [A, B])],
    case progress(A, Pids) of
        Last -> watch(A, B, Pids, Peak, Last, Still + 1, Deadline);
        Other -> watch(A, B, Pids, Peak, Other, 0, Deadline)
    end.

%% How far each sender has come: it keeps that in its process dictionary.
progress(A, Pids) ->
    ?LIB:run(A, fun() -> [case process_info(P, dictionary) of {dictionary, D} -> D; undefined -> gone end || P <- Pids] end).

%% How many messages each has sent.
sent(A, Pids) -> [proplists:get_value(sent, D) || D <- progress(A, Pids)].

status(A, Pid) ->
    ?LIB:run(A, fun() -> case process_info(Pid, status) of {status, S} -> S; undefined -> gone end end).

result(B, Receiver, Timeout) ->
    ?LIB:run(B, fun() ->
        Receiver ! {tell, self()},
        receive {Receiver, Result} -> Result after Timeout -> error({deadline, process_info(Receiver, [dictionary, message_queue_len])}) end
    end, Timeout + 5000).

%% While one direction is held the other one works, and so do ticks and the handshakes of others.
held_one_way_only(_Config) ->
    {A, NodeA, B, NodeB} = pair(),
    Release = hold(B, A),
    Base = rand:bytes(?MIB - 8),
    R = ?LIB:run(B, fun() -> spawn(?MODULE, receive_numbered, [Base, 200, 1]) end),
    Sender = ?LIB:run(A, fun() -> spawn(?MODULE, send_numbered, [R, Base, 200]) end),
    ?LIB:wait_until(suspended, fun() -> status(A, Sender) =:= suspended end, 20000),
    %% B to A
    Back = ?LIB:run(A, fun() -> spawn(?MODULE, receive_numbered, [Base, 100, 1]) end),
    _ = ?LIB:run(B, fun() -> send_numbered(Back, Base, 100) end),
    done = result(A, Back, 30000),
    %% a third node reaches both
    C = ?LIB:start(#{tag => "third"}),
    [Node = ?LIB:call(C, erpc, call, [Node, erlang, node, [], 10000]) || Node <- [NodeA, NodeB]],
    suspended = status(A, Sender),
    ok = Release(),
    done = result(B, R, 30000).

%% Who sends small messages without pause, one way, leaves the other way free: the process that carries both has always more to send.
small_flood(_Config) ->
    {A, _, B, NodeB} = pair(),
    Flood = fun Again(To) -> To ! <<0:800>>, Again(To) end,
    Senders = ?LIB:run(A, fun() -> [spawn(fun() -> Flood({quic_dist_test_nobody, NodeB}) end) || _ <- lists:seq(1, 8)] end),
    Base = rand:bytes(100),
    R = ?LIB:run(A, fun() -> spawn(?MODULE, receive_numbered, [Base, 2000, 1]) end),
    _ = ?LIB:run(B, fun() -> send_numbered(R, Base, 2000) end, 90000),
    done = result(A, R, 90000),
    [] = ?LIB:run(A, fun() -> [P || P <- Senders, not is_process_alive(P)] end),
    _ = ?LIB:run(A, fun() -> [exit(P, kill) || P <- Senders] end).

%% erlang:send/3 with nosuspend does not wait, and says that it did not send.
nosuspend_says_so(_Config) ->
    {A, _, B, NodeB} = pair(),
    ?LIB:signal(B, "STOP"),
    {Sent, nosuspend} = ?LIB:run(A, fun() ->
        Payload = rand:bytes(100000),
        Fill = fun Again(N) when N > 10000 -> {N, never_full};
                   Again(N) ->
                       case erlang:send({quic_dist_test_nobody, NodeB}, Payload, [nosuspend]) of
                           ok -> Again(N + 1);
                           nosuspend -> {N, nosuspend}
                       end
               end,
        Fill(0)
    end),
    true = Sent * 100000 < ?LIMIT,
    ?LIB:signal(B, "CONT"),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 20000]).

%% The connection is taken down while senders wait: they go on (what they send is lost), and nothing is left of the queues.
disconnect_while_held(_Config) ->
    {A, _, B, NodeB} = pair(),
    warm_up(A, B),
    Before = ?LIB:rss(A),
    Threads = ?LIB:threads(A),
    ?LIB:signal(B, "STOP"),
    Base = rand:bytes(?MIB - 8),
    Senders = [?LIB:run(A, fun() -> spawn(fun() -> send_numbered({quic_dist_test_nobody, NodeB}, Base, 100) end) end) || _ <- [1, 2, 3]],
    [?LIB:wait_until(suspended, fun() -> status(A, S) =:= suspended end, 20000) || S <- Senders],
    Progress = progress(A, Senders),
    true = ?LIB:call(A, erlang, disconnect_node, [NodeB]),
    %% the waiting are woken; then they wait for a new connection to the stopped node, so end them here
    [?LIB:wait_until(woken, fun() -> progress(A, [S]) =/= [Was] end, 10000) || {S, Was} <- lists:zip(Senders, Progress)],
    _ = ?LIB:run(A, fun() -> [exit(S, kill) || S <- Senders] end),
    ?LIB:signal(B, "CONT"),
    ?LIB:wait_until(rss, fun() -> ?LIB:rss(A) - Before < 32 * ?MIB end, 10000),
    ?LIB:connect(A, B),
    Threads = ?LIB:threads(A),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]).

%% Who sends large messages without pause waits for its own stream, suspended by the connection's controller, and a small message
%% does not wait for them; when the connection ends they go on.
small_beside_large(_Config) ->
    {A, _, B, NodeB} = pair(),
    warm_up(A, B),
    Receivers = [?LIB:run(B, fun() -> spawn(?MODULE, receive_all, []) end) || _ <- [1, 2]],
    Base = rand:bytes(?MIB - 8),
    Senders = [?LIB:run(A, fun() -> spawn(?MODULE, send_numbered, [R, Base, 1000000]) end) || R <- Receivers],
    Echo = ?LIB:run(B, fun() -> spawn(fun echo/0) end),
    Controller = ?LIB:run(A, fun() -> {ok, C} = quic_dist:get_controller(NodeB), C end),
    ?LIB:wait_until(suspended_by_controller, fun() -> suspended_by(A, Controller) =/= [] end, 20000),
    ?LIB:wait_until(started, fun() -> lists:all(fun is_integer/1, sent(A, Senders)) end, 20000),
    Goal = [Was + 10 || Was <- sent(A, Senders)],
    %% for as long as it takes them to send some more
    Going = fun() -> not lists:all(fun({P, N}) -> {dictionary, D} = process_info(P, dictionary), proplists:get_value(sent, D) > N end,
                                   lists:zip(Senders, Goal)) end,
    {Already, From} = {lists:sum(sent(A, Senders)), erlang:monotonic_time(microsecond)},
    Times = ?LIB:run(A, fun() -> pings(Echo, 300, Going) end, 60000),
    Each = (erlang:monotonic_time(microsecond) - From) div max(1, lists:sum(sent(A, Senders)) - Already),
    Median = lists:nth(length(Times) div 2, lists:sort(Times)),
    ct:log("ping-pong beside two senders of 1 MiB: p50 ~b us, longest ~b us; ~b us for each of theirs", [Median, lists:max(Times), Each]),
    %% half of what it takes to have four of theirs before it
    {true, _, _} = {Median < max(20000, 2 * Each), Median, Each},
    %% whom the controller holds now goes on without it
    ?LIB:signal(B, "STOP"),
    ?LIB:wait_until(held, fun() -> length(suspended_by(A, Controller)) =:= 2 end, 20000),
    [] = suspended_by(A, Controller) -- Senders,
    Held = progress(A, Senders),
    _ = ?LIB:run(A, fun() -> exit(Controller, kill) end),
    [?LIB:wait_until(goes_on, fun() -> progress(A, [S]) =/= [Was] orelse status(A, S) =:= gone end, 10000)
     || {S, Was} <- lists:zip(Senders, Held)],
    _ = ?LIB:run(A, fun() -> [exit(S, kill) || S <- Senders] end),
    ?LIB:signal(B, "CONT").

suspended_by(A, Controller) ->
    ?LIB:run(A, fun() ->
        case process_info(Controller, suspending) of
            {suspending, Of} -> [Pid || {Pid, _, _} <- Of];
            undefined -> []
        end
    end).

%%% Run on the nodes

-spec receive_all() -> no_return().
receive_all() ->
    receive _ -> receive_all() end.

-spec echo() -> no_return().
echo() ->
    receive {From, What} -> From ! What, echo() end.

%% So many at least, and more while it goes on.
pings(Echo, Count, Going) ->
    Times = [ping(Echo) || _ <- lists:seq(1, Count)],
    case Going() of
        true -> Times ++ pings(Echo, Count, Going);
        false -> Times
    end.

ping(Echo) ->
    Started = erlang:monotonic_time(microsecond),
    Echo ! {self(), pong},
    receive pong -> erlang:monotonic_time(microsecond) - Started end.

%% Every message is made anew, as a sender's own data are.
-spec send_numbered(pid() | {atom(), node()}, binary(), non_neg_integer()) -> ok.
send_numbered(To, Base, Count) ->
    lists:foreach(fun(I) -> To ! {n, <<I:64, Base/binary>>}, put(sent, I) end, lists:seq(1, Count)).

-spec receive_numbered(binary(), pos_integer(), pos_integer()) -> ok.
receive_numbered(Base, Count, Next) when Next > Count ->
    tell(done),
    receive_numbered(Base, Count, Next);
receive_numbered(Base, Count, Next) ->
    put(next, Next),
    receive
        {n, <<Next:64, Base/binary>>} -> receive_numbered(Base, Count, Next + 1);
        {n, <<Other:64, _/binary>>} -> tell({expected, Next, got, Other})
    end.

tell(Result) -> receive {tell, To} -> To ! {self(), Result}, ok end.

%% Counts the busy_dist_port events of this node.
-spec watch_busy() -> ok.
watch_busy() ->
    Caller = self(),
    Pid = spawn(fun() ->
        register(quic_dist_test_busy, self()),
        _ = erlang:system_monitor(self(), [busy_dist_port]),
        Caller ! {self(), watching},
        busy_loop(0)
    end),
    receive {Pid, watching} -> ok after 5000 -> error(deadline) end.

busy_loop(Count) ->
    receive
        {monitor, _, busy_dist_port, _} -> busy_loop(Count + 1);
        {count, From} -> From ! {busy, Count}, busy_loop(Count)
    end.

-spec busy_count() -> non_neg_integer().
busy_count() ->
    quic_dist_test_busy ! {count, self()},
    receive {busy, Count} -> Count after 5000 -> error(deadline) end.

%% Has nobody take what comes to B from A, while B's controller does all else; gives what ends it.
hold(B, A) ->
    Holder = ?LIB:call(B, ?MODULE, hold_input, [?LIB:node(A)]),
    fun() ->
        ?LIB:run(B, fun() ->
            Holder ! {resume, self()},
            receive {Holder, resumed} -> ok after 5000 -> error(deadline) end
        end)
    end.

%% What comes is told another process than the controller, which keeps it to itself until it is told to resume. The controller is
%% left alone for it would take what it finds while it asks for more, as it does for a moment after something has come.
-spec hold_input(node()) -> pid().
hold_input(Node) ->
    {ok, Conn, Controller} = quic_dist_nodes:connection(Node),
    Waits = fun() -> process_info(Controller, [priority, status]) =:= [{priority, high}, {status, waiting}] end,
    Caller = self(),
    Holder = spawn(fun() ->
        %% what comes just before may make it ask once more
        ?LIB:wait_until(held, fun() -> Waits() andalso ok =:= quic_dist_nif:set_input(Conn, self()) andalso Waits() end, 10000),
        Caller ! {self(), held},
        receive {resume, From} -> ok = quic_dist_nif:set_input(Conn, Controller), From ! {self(), resumed} end,
        forward(Controller)
    end),
    receive {Holder, held} -> Holder after 15000 -> error(deadline) end.

%% Also what was on its way when the controller was to be told again.
forward(Controller) ->
    receive {quic_dist_packets, _} = Told -> Controller ! Told, forward(Controller) end.
