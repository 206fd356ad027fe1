%% Two nodes that talk both ways all the time while something happens to the network between them: whether every message arrives, once
%% and in order, and for how long none does; and what is left of it afterwards.
-module(quic_dist_test_talk).

-export([start/2, start/3, pauses/1, go_on/2, resumed/1, finish/1, last/1, again/1, nothing_left/1]).
%% run on the nodes
-export([listen/0, say/2, talker/4, listener/2, heard/0, said/0]).

-export_type([talk/0]).

-type handle() :: quic_dist_test_lib:handle().
-type talk() :: [{handle(), Other :: handle()}].

-define(LIB, quic_dist_test_lib).
-define(AGENT, quic_dist_test_agent).
-define(CLOCK, quic_dist_test_clock).
-define(TALKER, quic_dist_test_talker).
%% Many times what a talk has under way; what a mailbox had in it, and the allocators have not given back yet, is no leak.
-define(RSS_BYTES, (32 * 1048576)).

%% Messages of some bytes, one every 1 to 2 ms, so that more than a packet is on its way at any time.
-spec start(handle(), handle()) -> talk().
start(A, B) -> start(A, B, 4000).

%% They must be connected.
-spec start(handle(), handle(), Size :: pos_integer()) -> talk().
start(A, B, Size) ->
    Talk = [{A, B}, {B, A}],
    _ = put({?MODULE, Talk}, ?CLOCK:now_ms()),
    [ok = ?LIB:call(H, ?MODULE, listen, []) || H <- [A, B]],
    [ok = ?LIB:call(From, ?MODULE, say, [?LIB:node(To), Size]) || {From, To} <- [{A, B}, {B, A}]],
    [?LIB:wait_until({talks, From}, fun() -> last(To) > 100 end, 20000) || {From, To} <- Talk],
    %% what it takes to get going is no pause
    ?LIB:wait_until({steady, Talk}, fun() ->
        timer:sleep(300),
        lists:all(fun({New, Pause}) -> New > 0 andalso Pause =< 500 end, pauses(Talk))
    end, 30000),
    %% by the process that looks at it afterwards, that is, by the case: before anything has happened to them
    _ = [put({?MODULE, H}, held(H)) || H <- [A, B]],
    _ = pauses(Talk),
    undisturbed(Talk),
    Talk.

%% On each side: how many messages came since it was last asked, and the longest time without one, in ms; without the longest time that
%% the machine stood still meanwhile, which no message can do anything about.
-spec pauses(talk()) -> [{non_neg_integer(), non_neg_integer()}].
pauses(Talk) ->
    Heard = [?LIB:call(H, ?MODULE, heard, []) || {H, _} <- Talk],
    %% by the process that has begun the talk, that is, by the case
    Stalled = ?CLOCK:longest(put({?MODULE, Talk}, ?CLOCK:now_ms())),
    Stalled > 0 andalso ct:log("the machine stood still for ~b ms", [Stalled]),
    [{New, max(0, Pause - Stalled)} || {New, Pause} <- Heard].

%% Everything has arrived in order with no longer pause than that, and (where they are watched) the nodes never lost sight of each other.
-spec go_on(talk(), Longest :: non_neg_integer()) -> [{non_neg_integer(), non_neg_integer()}].
go_on(Talk, Longest) ->
    Pauses = pauses(Talk),
    ct:log("messages and the longest pause in ms, on each side, since it was last asked: ~w", [Pauses]),
    undisturbed(Talk),
    [true = New > 0 andalso Pause =< Longest || {New, Pause} <- Pauses],
    Pauses.

undisturbed(Talk) -> [[{nodeup, _}] = ?LIB:call(H, ?AGENT, node_events, []) || {H, _} <- Talk].

%% Waits until something new is heard on each side.
-spec resumed(talk()) -> ok.
resumed(Talk) ->
    Known = [{To, last(To)} || {_, To} <- Talk],
    [?LIB:wait_until({resumed, To}, fun() -> last(To) > N end, 20000) || {To, N} <- Known],
    ok.

%% Says no more, and waits until all that was said has been heard; what comes after that is no pause. Gives what was, each way.
-spec finish(talk()) -> [Messages :: pos_integer()].
finish(Talk) ->
    [begin
         Said = ?LIB:call(From, ?MODULE, said, []),
         ?LIB:wait_until({heard, Said}, fun() -> last(To, Said) =:= Said end, 60000),
         Said
     end || {From, To} <- Talk].

%% The number of the last message that a side has heard, all before it in their order.
-spec last(handle()) -> non_neg_integer().
last(H) -> last(H, never).

%% ... of so many.
last(H, Said) ->
    ?LIB:run(H, fun() -> ?MODULE ! {last, self(), Said}, receive {?MODULE, Last} -> Last after 5000 -> error(deadline) end end).

%% After it comes another connection, which works both ways, and with it the nodes hold what they held when the talk began.
-spec again(talk()) -> ok.
again([{A, B}, _]) ->
    ?LIB:disconnect(A, B),
    ?LIB:connect(A, B),
    [pong = ?LIB:call(H, net_adm, ping, [?LIB:node(Other)]) || {H, Other} <- [{A, B}, {B, A}]],
    nothing_left([A, B]).

%% Soon: as many threads and descriptors as when the talk began, hardly more memory, and a connection for each node that is connected and no
%% other.
-spec nothing_left([handle()]) -> ok.
nothing_left(Handles) ->
    [begin
         Was = get({?MODULE, H}),
         try
             ?LIB:wait_until(nothing_left, fun() -> holds_no_more(Was, held(H)) andalso is_let_go(H) end, 15000)
         catch
             error:{deadline, nothing_left} -> error({left, ?LIB:node(H), Was, held(H), ?LIB:call(H, quic_dist, info, [])})
         end,
         #{rss := Rss} = held(H),
         ct:log("~s: ~.1f MiB more are resident than when the talk began", [?LIB:node(H), (Rss - maps:get(rss, Was)) / 1048576])
     end || H <- Handles],
    ok.

%% What a node holds that could be left behind. Code that is loaded takes a descriptor for a moment.
held(H) ->
    ok = ?LIB:collect(H),
    Fds = [begin timer:sleep(20), ?LIB:fds(H) end || _ <- [1, 2, 3]],
    #{threads => ?LIB:threads(H), fds => lists:min(Fds), rss => ?LIB:rss(H)}.

holds_no_more(#{threads := Threads, fds := Fds, rss := Rss}, #{threads := ThreadsNow, fds := FdsNow, rss := RssNow}) ->
    ThreadsNow =< Threads andalso FdsNow =< Fds andalso RssNow =< Rss + ?RSS_BYTES.

is_let_go(H) ->
    #{endpoints := Endpoints} = ?LIB:call(H, quic_dist, info, []),
    [lists:sum([maps:get(What, E) || E <- Endpoints]) || What <- [connections, half_open]] =:= [length(?LIB:call(H, erlang, nodes, [connected])), 0].

%%% On the nodes

-spec listen() -> ok.
listen() ->
    true = register(?MODULE, spawn(?MODULE, listener, [0, #{pause => 0, at => now_ms(), asked => 0}])),
    ok.

-spec say(node(), pos_integer()) -> ok.
say(Node, Size) ->
    true = register(?TALKER, spawn(?MODULE, talker, [Node, 1, rand:bytes(Size), 0])),
    ok.

-spec talker(node(), pos_integer(), binary(), non_neg_integer()) -> ok.
talker(Node, N, Bytes, Said) ->
    receive
        {said, From} -> From ! {?TALKER, Said}, ok
    after 1 ->
        {?MODULE, Node} ! {say, N, Bytes},
        talker(Node, N + 1, Bytes, N)
    end.

-spec said() -> non_neg_integer().
said() ->
    ?TALKER ! {said, self()},
    receive {?TALKER, Said} -> Said after 60000 -> error(deadline) end.

-spec listener(non_neg_integer(), map()) -> no_return().
listener(Last, #{pause := Pause, at := At, asked := Asked} = Seen) ->
    receive
        {say, N, _} ->
            true = N =:= Last + 1,
            Now = now_ms(),
            listener(N, Seen#{pause := max(Pause, Now - At), at := Now});
        {heard, From} ->
            Silence = case Seen of #{all := Last} -> 0; #{} -> now_ms() - At end,
            From ! {?MODULE, {Last - Asked, max(Pause, Silence)}},
            listener(Last, Seen#{pause := 0, asked := Last});
        {last, From, Said} ->
            From ! {?MODULE, Last},
            listener(Last, Seen#{all => Said})
    end.

-spec heard() -> {non_neg_integer(), non_neg_integer()}.
heard() ->
    ?MODULE ! {heard, self()},
    receive {?MODULE, Heard} -> Heard after 5000 -> error(deadline) end.

now_ms() -> erlang:monotonic_time(millisecond).
