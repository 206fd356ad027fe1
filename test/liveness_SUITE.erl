%% Who is alive is not lost, however full the link is; who is silent is noticed when net_ticktime says so, neither later nor
%% much earlier.
%%
%% With four ticks in net_ticktime T, OTP promises `nodedown` between 0.75 T and 1.25 T after the last sign of life. The nodes connect
%% only when a case says so (dist_auto_connect never). A case waits for several pairs of nodes at once.
%%
%%   QUIC_DIST_LIVENESS=full       full_load lasts five minutes (or so many seconds as it says) in place of 15 seconds
-module(liveness_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([full_load/1, stopped_peer/1, silent_path/1, stopped_under_load/1]).
%% run on the nodes
-export([watch/1, events/0, controller/1, sender/3, receiver/1, received/0, echo/0, probe/2, probed/1]).

-define(LIB, quic_dist_test_lib).
-define(MIB, 1048576).
-define(TICKTIME_S, 8).
-define(TICK_MS, (?TICKTIME_S * 1000 div 4)).
-define(EARLIEST_MS, (3 * ?TICK_MS - 250)).
%% The ticker's timers are late by a little each time.
-define(LATEST_MS, (5 * ?TICK_MS + 500)).
%% What one node sends to the other: sizes of messages, one for each sender.
-define(LOAD, [?MIB, ?MIB, ?MIB, 100, 100, 100, 100]).

suite() -> [{timetrap, {seconds, 90 + duration_s()}}].

all() -> [full_load, stopped_peer, silent_path, stopped_under_load].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) ->
    ?LIB:init_case(Case, [{full_load, "it looks into QUIC connections"}, {silent_path, "the relay carries UDP"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

duration_s() ->
    case os:getenv("QUIC_DIST_LIVENESS", "15") of
        "full" -> 300;
        Seconds -> list_to_integer(Seconds)
    end.

%%% Alive

%% Two pairs talk as fast as they can, both ways. A third has much to say, both ways, and its data stands still: nobody takes what
%% comes, the windows are full, and nothing but ticks can show that its nodes live.
full_load(_Config) ->
    [One, Four, Held] = Pairs = pairs([{"one", []}, {"four", streams(4)}, {"held", []}]),
    Before = [controllers(P) || P <- Pairs],
    Probes = [{H, ?LIB:run(H, fun() -> probe(Node, Echo) end)}
              || P <- [One, Four], {H, Other} <- ends(P), Node <- [?LIB:node(Other)],
                 Echo <- [?LIB:run(Other, fun() -> spawn(?MODULE, echo, []) end)]],
    Holders = [{H, ?LIB:call(H, backpressure_SUITE, hold_input, [?LIB:node(Other)])} || {H, Other} <- ends(Held)],
    Waiting = [{From, load(From, To, 1000)} || {From, To} <- ends(Held)],
    [?LIB:wait_until(suspended, fun() -> lists:member(suspended, states(H, Senders)) end, 20000) || {H, Senders} <- Waiting],
    HeldBefore = [begin
                      ?LIB:wait_until(still, fun() -> S = stat(H, Other), timer:sleep(500), stat(H, Other) =:= S end, 20000),
                      {stat(H, Other), now_ms()}
                  end || {H, Other} <- ends(Held)],
    Started = now_ms(),
    AtIt = [{From, load(From, To)} || P <- [One, Four], {From, To} <- ends(P)],
    timer:sleep(duration_s() * 1000),
    %% every message came, once and in order: otherwise its receiver and its sender have ended
    [false = lists:member(gone, states(H, Senders)) || {H, Senders} <- AtIt],
    %% nothing was lost, nor lost and connected again
    [{Tag, []} = {Tag, ?LIB:call(H, ?MODULE, events, [])} || {Tag, P} <- lists:zip([one, four, held], Pairs), {H, _} <- ends(P)],
    Before = [controllers(P) || P <- Pairs],
    [flowed(Name, H, (now_ms() - Started) / 1000) || {Name, P} <- [{"1 stream", One}, {"4 streams", Four}], {H, _} <- ends(P)],
    [begin
         Probe = ?LIB:call(H, ?MODULE, probed, [Pid]),
         ct:log("under load: ~p", [Probe]),
         %% signs of life came and went in every tick, and a tick would have had its turn
         #{silent := 0, samples := Samples, echoes := Echoes, getstat_ms := Stat, echo_ms := Echo} = Probe,
         true = Samples > 1 andalso Echoes > 1 andalso Stat < ?TICK_MS andalso Echo < ?TICKTIME_S * 1000
     end || {H, Pid} <- Probes],
    [begin
         {Received0, Sent0} = Stat0,
         {Received, Sent} = stat(H, Other),
         ct:log("held: ~b packets received, ~b sent", [Received - Received0, Sent - Sent0]),
         %% as idle as a connection can be, and alive
         Ticks = (now_ms() - Since) div ?TICK_MS,
         [true = N >= Ticks div 2 andalso N =< 10 * (Ticks + 2) || N <- [Received - Received0, Sent - Sent0]]
     end || {{Stat0, Since}, {H, Other}} <- lists:zip(HeldBefore, ends(Held))],
    [true = lists:member(suspended, states(H, Senders)) || {H, Senders} <- Waiting],
    [?LIB:run(H, fun() -> Holder ! {resume, self()}, receive {Holder, resumed} -> ok end end) || {H, Holder} <- Holders],
    [?LIB:wait_until(flows, fun() -> element(1, ?LIB:call(H, ?MODULE, received, [])) > 16 end, 20000) || {H, _} <- ends(Held)],
    [false = lists:member(gone, states(H, Senders)) || {H, Senders} <- AtIt ++ Waiting].

%% Both sizes of messages came to a node.
flowed(Name, H, Seconds) ->
    {Large, Small} = ?LIB:call(H, ?MODULE, received, []),
    ct:log("~s, one way: ~.1f MiB/s in messages of 1 MiB, ~b messages/s of 100 bytes", [Name, Large / Seconds, round(Small / Seconds)]),
    Flowed = Large > 2 * Seconds andalso Small > 100 * Seconds,
    Flowed orelse ct:log("~p", [?LIB:call(H, quic_dist, info, [])]),
    true = Flowed.

%%% Dead, as far as anybody can tell

%% The operating system still takes what comes for the stopped node: nothing says that it is gone.
stopped_peer(_Config) ->
    [{A1, B1}, {A2, B2}] = pairs([{"stopped1", []}, {"stopped4", streams(4)}]),
    %% the dialled one of the first pair, the dialling one of the second
    Cases = [{A1, B1}, {B2, A2}],
    [?LIB:signal(Dead, "STOP") || {_, Dead} <- Cases],
    Stopped = now_ms(),
    [net_tick_timeout = noticed(stopped, Alive, Stopped) || {Alive, _} <- Cases],
    [?LIB:signal(Dead, "CONT") || {_, Dead} <- Cases],
    [talk_again(Alive, Dead) || {Alive, Dead} <- Cases].

%% Datagrams vanish in both directions, or in one. If only A cannot hear B, B goes on hearing A: it is A that gives up, and says so.
silent_path(_Config) ->
    Directions = [both, to_server, to_client],
    Pairs = pairs([{atom_to_list(D), ["-epmd_module", "quic_dist_test_epmd"]} || D <- Directions], fun relayed/2),
    [ok = quic_dist_relay:set(Relay, #{loss => 1.0, lossy => D}) || {D, {_, _, Relay}} <- lists:zip(Directions, Pairs)],
    Silent = now_ms(),
    [begin
         ReasonA = noticed({D, dialling}, A, Silent),
         ReasonB = noticed({D, dialled}, B, Silent),
         case D of
             both -> [net_tick_timeout, net_tick_timeout] = [ReasonA, ReasonB];
             to_server -> net_tick_timeout = ReasonB;
             to_client -> net_tick_timeout = ReasonA
         end
     end || {D, {A, B, _}} <- lists:zip(Directions, Pairs)],
    [begin
         ok = quic_dist_relay:set(Relay, #{loss => 0.0}),
         talk_again(A, B),
         quic_dist_relay:stop(Relay)
     end || {A, B, Relay} <- Pairs].

%% The same with all queues full: senders that wait for a peer that is gone are let go.
stopped_under_load(_Config) ->
    Pairs = pairs([{"load1", []}, {"load4", streams(4)}]),
    Loads = [{load(A, B), load(B, A)} || {A, B} <- Pairs],
    [?LIB:wait_until(flows, fun() -> element(1, ?LIB:call(H, ?MODULE, received, [])) > 16 end, 20000) || P <- Pairs, {H, _} <- ends(P)],
    Nodes = [?LIB:node(B) || {_, B} <- Pairs],
    [?LIB:signal(B, "STOP") || {_, B} <- Pairs],
    Stopped = now_ms(),
    %% those that were at it wait, for the connection or for an answer; these have more to say than any queue takes
    More = [[?LIB:run(A, fun() -> spawn(?MODULE, sender, [{liveness_nobody, NodeB}, ?MIB, 1000]) end) || _ <- [1, 2, 3]]
            || {{A, _}, NodeB} <- lists:zip(Pairs, Nodes)],
    [?LIB:wait_until(suspended, fun() -> lists:usort(states(A, Late)) =:= [suspended] end, 4000)
     || {{A, _}, Late} <- lists:zip(Pairs, More)],
    [net_tick_timeout = noticed(stopped_under_load, A, Stopped) || {A, _} <- Pairs],
    NoticedAt = quic_dist_test_clock:now_ms(),
    [?LIB:wait_until(released, fun() -> lists:usort(states(A, AtIt ++ Late)) =:= [gone] end, 20000)
     || {{A, _}, {AtIt, _}, Late} <- lists:zip3(Pairs, Loads, More)],
    true = quic_dist_test_clock:took(NoticedAt) =< 2000,
    [?LIB:signal(B, "CONT") || {_, B} <- Pairs],
    [talk_again(A, B) || {A, B} <- Pairs].

%% When a node took the other one for dead, and why.
noticed(What, H, Since) ->
    ?LIB:wait_until({noticed, What}, fun() -> length(?LIB:call(H, ?MODULE, events, [])) >= 2 end, ?LATEST_MS + 5000),
    Events = ?LIB:call(H, ?MODULE, events, []),
    ct:log("~p: ~p", [What, [{At - Since, Event} || {At, Event} <- Events]]),
    %% by net_kernel:monitor_nodes/2 and by monitor_node/2, once each
    [monitor_node, {nodedown, Reason}] = lists:sort([Event || {_, Event} <- Events]),
    Latest = ?LATEST_MS + quic_dist_test_clock:stalled(quic_dist_test_clock:now_ms() - (now_ms() - Since)),
    [true = At - Since >= ?EARLIEST_MS andalso At - Since =< Latest || {At, _} <- Events],
    Reason.

%% The other end may have to notice first that the old connection is no more.
talk_again(A, B) ->
    ?LIB:connect(A, B),
    NodeB = ?LIB:node(B),
    NodeB = ?LIB:call(A, erpc, call, [NodeB, erlang, node, [], 10000]).

%%% Pairs of nodes

streams(Count) -> ["-quic_dist", "data_streams", integer_to_list(Count)].

pairs(List) -> pairs(List, fun(A, B) -> ?LIB:connect(A, B), {A, B} end).

%% Connected and watched.
pairs(List, Connect) ->
    Args = ["-kernel", "net_ticktime", integer_to_list(?TICKTIME_S), "dist_auto_connect", "never"],
    Nodes = ?LIB:start_all([#{tag => Tag, args => Args ++ More} || {Tag, More} <- List, _ <- [a, b]]),
    [begin
         Pair = Connect(A, B),
         [ok = ?LIB:call(H, ?MODULE, watch, [?LIB:node(Other)]) || {H, Other} <- ends({A, B})],
         Pair
     end || {A, B} <- in_twos(Nodes)].

in_twos([A, B | Rest]) -> [{A, B} | in_twos(Rest)];
in_twos([]) -> [].

ends({A, B}) -> [{A, B}, {B, A}].

%% A reaches B through a relay.
relayed(A, B) ->
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(B)), "@")),
    {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    {Relay, Port} = quic_dist_relay:start(#{to => PortB}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
    ?LIB:connect(A, B),
    {A, B, Relay}.

controllers(Pair) -> [?LIB:call(H, ?MODULE, controller, [?LIB:node(Other)]) || {H, Other} <- ends(Pair)].

%% Packets received and sent.
stat(H, Other) ->
    Node = ?LIB:node(Other),
    ?LIB:run(H, fun() -> {ok, Received, Sent, _} = quic_dist_controller:getstat(controller(Node)), {Received, Sent} end).

now_ms() -> os:system_time(millisecond).

%%% Load

load(From, To) -> load(From, To, 1).

%% Senders, each with a receiver of its own. Ahead: how many windows each may be ahead of its receiver.
load(From, To, Ahead) ->
    [begin
         Receiver = ?LIB:run(To, fun() -> spawn(?MODULE, receiver, [Size]) end),
         ?LIB:run(From, fun() -> spawn(?MODULE, sender, [Receiver, Size, Ahead]) end)
     end || Size <- ?LOAD].

states(H, Pids) ->
    ?LIB:run(H, fun() -> [case process_info(P, status) of {status, S} -> S; undefined -> gone end || P <- Pids] end).

%% Messages that a sender may be ahead of its receiver: more than the link holds, less than a mailbox should.
window(?MIB) -> 12;
window(_Small) -> 8000.

-spec sender(pid() | {atom(), node()}, pos_integer(), pos_integer()) -> no_return().
sender(Receiver, Size, Ahead) ->
    Monitor = erlang:monitor(process, Receiver),
    sending(1, rand:bytes(Size), Receiver, Monitor, Ahead * window(Size)).

sending(N, Bytes, Receiver, Monitor, Credit) ->
    receive
        {more, More} -> sending(N, Bytes, Receiver, Monitor, Credit + More);
        {'DOWN', Monitor, process, _, Why} -> exit({shutdown, Why})
    after
        case Credit of 0 -> infinity; _ -> 0 end ->
            Receiver ! {data, self(), N, Bytes},
            sending(N + 1, Bytes, Receiver, Monitor, Credit - 1)
    end.

%% Of one sender. It ends, and the sender with it, where one of its messages is missing, doubled or out of order.
-spec receiver(pos_integer()) -> no_return().
receiver(Size) -> receiving(persistent_term:get(?MODULE), Size, window(Size) div 4, 0, 0).

receiving(Counters, Size, Batch, Count, Last) ->
    receive
        {data, _, N, _} when N =/= Last + 1 -> error({not_in_order, Last, N});
        {data, From, N, _} when Count =:= Batch ->
            From ! {more, Batch + 1},
            count(Counters, Size, Batch + 1),
            receiving(Counters, Size, Batch, 0, N);
        {data, _, N, _} -> receiving(Counters, Size, Batch, Count + 1, N)
    end.

count(Counters, ?MIB, Messages) -> counters:add(Counters, 1, Messages);
count(Counters, _Small, Messages) -> counters:add(Counters, 2, Messages).

%% Messages of a mebibyte and small ones that this node got.
-spec received() -> {non_neg_integer(), non_neg_integer()}.
received() ->
    Counters = persistent_term:get(?MODULE),
    {counters:get(Counters, 1), counters:get(Counters, 2)}.

%%% What a node sees of the other

%% Starts to keep what this node is told of Node, for events/0.
-spec watch(node()) -> ok.
watch(Node) ->
    persistent_term:put(?MODULE, counters:new(2, [])),
    Caller = self(),
    Pid = spawn(fun() ->
        ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
        true = erlang:monitor_node(Node, true),
        true = register(?MODULE, self()),
        Caller ! {self(), watching},
        watching([])
    end),
    receive {Pid, watching} -> ok after 5000 -> error(deadline) end.

watching(Events) ->
    receive
        {events, From} -> From ! {?MODULE, lists:reverse(Events)}, watching(Events);
        {nodeup, _, _} -> watching([{now_ms(), nodeup} | Events]);
        {nodedown, _} -> watching([{now_ms(), monitor_node} | Events]);
        {nodedown, _, Info} -> watching([{now_ms(), {nodedown, proplists:get_value(nodedown_reason, Info)}} | Events])
    end.

-spec events() -> [{At :: integer(), nodeup | monitor_node | {nodedown, term()}}].
events() ->
    ?MODULE ! {events, self()},
    receive {?MODULE, Events} -> Events after 5000 -> error(deadline) end.

%% The process or port that is the connection.
-spec controller(node()) -> pid() | port().
controller(Node) ->
    {Node, Controller} = lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)),
    Controller.

-spec echo() -> no_return().
echo() -> receive {echo, From} -> From ! echo end, echo().

%% Measures, until probed/1 asks: the packet counters in every tick and how long it takes to ask for them, as the tick loop does;
%% and how long a small message takes there and back.
-spec probe(node(), pid()) -> pid().
probe(Node, Echo) ->
    spawn(fun() ->
        Prober = self(),
        spawn_link(fun() -> echoing(Prober, Echo) end),
        Controller = controller(Node),
        {ok, Received, Sent, _} = quic_dist_controller:getstat(Controller),
        _ = erlang:send_after(?TICK_MS, self(), sample),
        probing(Controller, {Received, Sent}, #{samples => 0, silent => 0, getstat_ms => 0, echoes => 0, echo_ms => 0})
    end).

echoing(Prober, Echo) ->
    {Micros, echo} = timer:tc(fun() -> Echo ! {echo, self()}, receive echo -> echo end end),
    Prober ! {echo, Micros div 1000},
    timer:sleep(100),
    echoing(Prober, Echo).

probing(Controller, {Received, Sent} = Last, #{samples := Samples, silent := Silent, getstat_ms := Stat, echoes := Echoes, echo_ms := Echo} = Seen) ->
    receive
        sample ->
            _ = erlang:send_after(?TICK_MS, self(), sample),
            {Micros, {ok, R, S, _}} = timer:tc(fun() -> quic_dist_controller:getstat(Controller) end),
            More = if R > Received, S > Sent -> 0; true -> 1 end,
            probing(Controller, {R, S}, Seen#{samples := Samples + 1, silent := Silent + More, getstat_ms := max(Stat, Micros div 1000)});
        {echo, Millis} ->
            probing(Controller, Last, Seen#{echoes := Echoes + 1, echo_ms := max(Echo, Millis)});
        {probed, From} ->
            From ! {self(), Seen},
            probing(Controller, Last, Seen)
    end.

-spec probed(pid()) -> #{atom() => non_neg_integer()}.
probed(Probe) ->
    Probe ! {probed, self()},
    receive {Probe, Seen} -> Seen after 5000 -> error(deadline) end.
