%% What comes after a crash: how long it takes until the node is connected again, beside inet_tcp and inet_tls; a cluster whose nodes are
%% killed and started again at random, under load, and what `global' and `pg' know of it then; and two nodes under full load for long,
%% with faults coming and going, that need no more of anything at the end than at the beginning.
%%
%%   QUIC_DIST_CHAOS=full          ten minutes of killing, half an hour of load (or so many seconds of each as it says)
-module(chaos_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("public_key/include/public_key.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([reconnection/1, killed_at_random/1, soak/1]).
%% run on the nodes
-export([member/1, load/1, sink/0, known/0]).

-define(LIB, quic_dist_test_lib).
-define(LOAD, liveness_SUITE).
-define(MIB, 1048576).
-define(CRASHES, 5).
%% How often the NAT rebinds, while the soak goes on: with the first path and the last, these are as many as a connection has.
-define(REBINDS, 30).

suite() -> [{timetrap, {seconds, 240 + max(killing_s(), soaks() * soak_s())}}].

all() -> [reconnection, killed_at_random, soak].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{C, "it looks into QUIC connections"} || C <- [reconnection, soak]], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

killing_s() -> duration(30, 600).
soak_s() -> duration(60, 1800).

duration(Short, Full) ->
    case os:getenv("QUIC_DIST_CHAOS") of
        false -> Short;
        "full" -> Full;
        Seconds -> list_to_integer(Seconds)
    end.

%%% Reconnection

%% B is killed and started again. Then it dials A, which may not have noticed yet; or A, which has, dials it. On QUIC A resumes the session
%% that it had, and B, which lost what it had in its memory, cannot. The carriers take turns.
reconnection(Config) ->
    ok = ?LIB:not_at_midnight(100),
    Tls = tls(?config(priv_dir, Config)),
    Carriers = [{"quic", []}, {"inet_tcp", []}, {"inet_tls", ["-ssl_dist_optfile", Tls]}],
    Pairs = [begin
                 Options = #{carrier => Carrier, args => ["-kernel", "dist_auto_connect", "never" | Args]},
                 B = Options#{name => ?LIB:name("b")},
                 [NodeA, NodeB] = ?LIB:start_all([Options, B]),
                 ?LIB:connect(NodeA, NodeB),
                 pong = ?LIB:call(NodeA, net_adm, ping, [?LIB:node(NodeB)]),
                 {Carrier, NodeA, NodeB, B}
             end || {Carrier, Args} <- Carriers],
    Times = crashes(?CRASHES, Pairs),
    Sorted = [{Who, Carrier, lists:sort([T || {W, C, T} <- Times, W =:= Who, C =:= Carrier])}
              || Who <- [crashed_dials, other_dials], {Carrier, _} <- Carriers],
    Medians = maps:from_list([{{Who, Carrier}, lists:nth(?CRASHES div 2 + 1, T)} || {Who, Carrier, T} <- Sorted]),
    ct:log("ms from dialling to nodeup after a crash, median of ~b: ~p; all: ~p", [?CRASHES, Medians, Sorted]),
    %% two handshakes of TLS 1.3, and no more of anything: as TLS over TCP
    [{Who, true} = {Who, maps:get({Who, "quic"}, Medians) =< 2 * maps:get({Who, "inet_tls"}, Medians) + 20} || Who <- [crashed_dials, other_dials]],
    ok.

crashes(0, _) -> [];
crashes(N, Pairs) ->
    {Times, Left} = lists:unzip([begin
        {First, B1} = crash(crashed_dials, Pair),
        {Second, B2} = crash(other_dials, {Carrier, A, B1, Options}),
        {[{crashed_dials, Carrier, First}, {other_dials, Carrier, Second}], {Carrier, A, B2, Options}}
    end || {Carrier, A, _, Options} = Pair <- Pairs]),
    lists:append(Times) ++ crashes(N - 1, Left).

crash(Who, {Carrier, A, B, Options}) ->
    ?LIB:kill(B),
    Again = ?LIB:start(Options),
    Dialler = case Who of
        crashed_dials -> Again;
        other_dials ->
            %% who sends to a UDP socket that is gone is told so; without a word only ticks would find it out
            Dead = list_to_atom(maps:get(name, Options)),
            ?LIB:wait_until(alone, fun() ->
                _ = ?LIB:call(A, erlang, send, [{nobody, Dead}, hello, [noconnect]]),
                ?LIB:call(A, erlang, nodes, [connected]) =:= []
            end, 20000),
            A
    end,
    [Dialled] = [A, Again] -- [Dialler],
    Node = ?LIB:node(Dialled),
    Millis = ?LIB:run(Dialler, fun() ->
        {Micros, true} = timer:tc(net_kernel, connect_node, [Node]),
        Micros / 1000
    end),
    ?LIB:await_connected(A, Again),
    %% a ticket comes with what is said
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(Again)]),
    case Carrier of
        "quic" ->
            #{connections := [#{resumed := Resumed}]} = ?LIB:call(A, quic_dist, info, []),
            {Who, Resumed} = {Who, Who =:= other_dials};
        _ -> ok
    end,
    {Millis, Again}.

%% An authority, and certificates of it for either end.
tls(Dir) ->
    Key = {key, {namedCurve, secp256r1}},
    Host = #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = [{dNSName, "127.0.0.1"}, {iPAddress, <<127, 0, 0, 1>>}], critical = false},
    %% the default is SHA-1, which ssl refuses since OTP 26
    Digest = {digest, sha256},
    Chain = #{root => [Key, Digest], intermediates => [], peer => [Key, Digest, {extensions, [Host]}]},
    #{server_config := Server, client_config := Client} =
        public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    [Server1, Client1] = [begin
        File = fun(What, Ders) ->
            Path = filename:join(Dir, lists:concat([Side, "_", What, ".pem"])),
            ok = file:write_file(Path, public_key:pem_encode([{Type, Der, not_encrypted} || {Type, Der} <- Ders])),
            Path
        end,
        {KeyType, KeyDer} = proplists:get_value(key, Opts),
        [{certfile, File(cert, [{'Certificate', proplists:get_value(cert, Opts)}])},
         {keyfile, File(key, [{KeyType, KeyDer}])},
         {cacertfile, File(ca, [{'Certificate', Der} || Der <- proplists:get_value(cacerts, Opts)])},
         {verify, verify_peer}]
    end || {Side, Opts} <- [{server, Server}, {client, Client}]],
    Conf = filename:join(Dir, "tls.conf"),
    ok = file:write_file(Conf, io_lib:format("~p.~n", [[{server, [{fail_if_no_peer_cert, true} | Server1]},
                                                       {client, Client1}]])),
    Conf.

%%% Killed at random

%% Each of five nodes says something to all others all the time, and so dials those that are not connected.
killed_at_random(_Config) ->
    Names = [?LIB:name("n" ++ integer_to_list(I)) || I <- lists:seq(1, 5)],
    Nodes = [list_to_atom(N) || N <- Names],
    Join = fun(H) -> ok = ?LIB:call(H, ?MODULE, member, [Nodes]), H end,
    Started = [Join(H) || H <- ?LIB:start_all([#{name => N} || N <- Names])],
    {Rounds, _} = lists:mapfoldl(fun(_, Handles) ->
        %% for so long, and on a slow machine until there were as many as belong to it
        {Killed, Left} = kill_some(millis() + round_s() * 1000, round_s() div 5, Names, Handles, Join, 0),
        {Meshed, Known} = meshes(Left, Nodes),
        {{Killed, Meshed, Known}, Left}
    end, Started, lists:seq(1, max(1, killing_s() div round_s()))),
    {Killed, Meshed, Known} = lists:unzip3(Rounds),
    ct:log("~b crashes, in ~b rounds of ~b s; then each time meshed after ~b ms at most, global and pg agreed after ~b ms at most: ~w",
           [lists:sum(Killed), length(Rounds), round_s(), lists:max(Meshed), lists:max(Known), Rounds]).

%% Between two looks at what is left.
round_s() -> max(1, min(60, killing_s() div 2)).

%% Nobody is killed any more: how long it takes until each is connected to all others, and until what each knows is right.
meshes(Left, Nodes) ->
    Since = millis(),
    ?LIB:await_mesh(Left),
    Meshed = millis() - Since,
    %% what each knows: all five names, and all five members, each of them alive
    Show = spawn_link(fun() -> timer:sleep(30000), ct:log("after 30 s each knows: ~0p", [[{?LIB:node(H), ?LIB:call(H, ?MODULE, known, [])} || H <- Left]]) end),
    ?LIB:wait_until(knows, fun() ->
        case lists:usort([?LIB:call(H, ?MODULE, known, []) || H <- Left]) of
            [{Global, Pg}] -> length(Global) =:= 5 andalso lists:sort([node(P) || P <- Global]) =:= lists:sort(Nodes)
                              andalso lists:sort([node(P) || P <- Pg]) =:= lists:sort(Nodes);
            _ -> false
        end
    end, 120000),
    Known = millis() - Since,
    unlink(Show),
    exit(Show, kill),
    [{Global, Pg} | _] = [?LIB:call(H, ?MODULE, known, []) || H <- Left],
    [true = ?LIB:run(H, fun() -> lists:all(fun(P) -> erpc:call(node(P), erlang, is_process_alive, [P], 10000) end, Global ++ Pg) end) || H <- Left],
    {Meshed, Known}.

kill_some(Deadline, Least, Names, Handles, Join, Killed) ->
    case millis() > Deadline andalso Killed >= Least of
        true -> {Killed, Handles};
        false ->
            At = rand:uniform(5),
            ?LIB:kill(lists:nth(At, Handles)),
            timer:sleep(rand:uniform(500)),
            Again = Join(?LIB:start(#{name => lists:nth(At, Names)})),
            {Before, [_ | After]} = lists:split(At - 1, Handles),
            timer:sleep(rand:uniform(500)),
            kill_some(Deadline, Least, Names, Before ++ [Again | After], Join, Killed + 1)
    end.

%% Joins: a name in `global', a member in `pg', and something to say to everybody.
-spec member([node()]) -> ok.
member(Nodes) ->
    _ = spawn(fun() ->
        {ok, _} = pg:start(chaos_groups),
        register(chaos, self()),
        ok = pg:join(chaos_groups, everybody, self()),
        sink()
    end),
    ?LIB:wait_until(fun() -> whereis(chaos) =/= undefined end, 5000),
    %% a name for each life: two processes that want one are settled by killing one of them
    _ = spawn(fun() -> yes = global:register_name({chaos, node(), erlang:system_info(creation)}, whereis(chaos)), ok end),
    _ = spawn(?MODULE, load, [Nodes -- [node()]]),
    ok.

-spec sink() -> no_return().
sink() -> receive _ -> sink() end.

-spec load([node()]) -> no_return().
load(Nodes) ->
    Bytes = rand:bytes(10000),
    [{chaos, Node} ! Bytes || Node <- Nodes],
    timer:sleep(5),
    load(Nodes).

%% The processes behind the names in `global', and the members of the group.
-spec known() -> {[pid()], [pid()]}.
known() ->
    {lists:sort([global:whereis_name(Name) || {chaos, _, _} = Name <- global:registered_names()]),
     lists:sort(pg:get_members(chaos_groups, everybody))}.

%%% Soak

%% Both ways through a relay that is bad in another way every few seconds, among them a NAT that rebinds, and all is well in between. Of every
%% path that is left QUIC keeps what it had allocated for it, and a connection has 32 at most (docs/architecture.md, "Limits"). Where memory is
%% measured, the NAT therefore rebinds thirty times in the first quarter: then the connection is as large as it gets. It follows once more in the end.
soak(_Config) ->
    Args = ["-epmd_module", "quic_dist_test_epmd", "-kernel", "net_ticktime", "60", "dist_auto_connect", "never"],
    [A, B] = Both = ?LIB:start_all([#{tag => T, args => Args} || T <- ["soak_a", "soak_b"]]),
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(B)), "@")),
    {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    {Relay, Port} = quic_dist_relay:start(#{to => PortB}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
    ?LIB:connect(A, B),
    [ok = ?LIB:call(H, ?LOAD, watch, [?LIB:node(O)]) || {H, O} <- [{A, B}, {B, A}]],
    Receivers = [begin
         Receiver = ?LIB:run(To, fun() -> spawn(?LOAD, receiver, [Size]) end),
         _ = ?LIB:run(From, fun() -> spawn(?LOAD, sender, [Receiver, Size, 1]) end),
         {To, Receiver}
     end || {From, To} <- [{A, B}, {B, A}], Size <- [?MIB, ?MIB, 100, 100]],
    ok = soaked(soaks(), Both, Relay, millis(), []),
    ok = follows(Both, Relay),
    %% every message came, once and in order: otherwise who waits for it has ended
    [{H, true} = {H, ?LIB:call(H, erlang, is_process_alive, [R])} || {H, R} <- Receivers],
    [[] = ?LIB:call(H, ?LOAD, events, []) || H <- Both],
    [begin
         {Large, Small} = ?LIB:call(H, ?LOAD, received, []),
         ct:log("~s received ~b messages of 1 MiB, ~b of 100 bytes", [?LIB:node(H), Large, Small]),
         true = Large > soak_s() andalso Small > 100 * soak_s()
     end || H <- Both],
    quic_dist_relay:stop(Relay).

%% Until everything is flat. In a minute what is under way, which comes and goes with what else the machine does, can look like growth: then
%% it goes on for as long again, at most twice. What leaks, leaks all the time. Where memory is measured, what grows is an error at once, and it
%% goes on where nobody can tell.
soaked(Left, Both, Relay, Started, Before) ->
    Samples = Before ++ sample(Both, Relay, Started, millis() + soak_s() * 1000, []),
    case [Found || {_, Verdict} = Found <- growing(Both, Samples), Verdict =/= flat] of
        [] -> ok;
        Found when Left =:= 1 -> error({not_flat, Found});
        Found ->
            resident() =/= [] andalso lists:keymember(grows, 2, Found) andalso error({not_flat, Found}),
            ct:log("it goes on: ~p", [Found]),
            soaked(Left - 1, Both, Relay, Started, Samples)
    end.

soaks() ->
    case resident() of [] -> 3; _ -> 1 + length([full || is_full()]) end.

is_full() -> soak_s() >= 1800.

%% After a quarter of the time everything is as large as it gets.
growing(Both, Samples) ->
    Settled = [S || {At, _} = S <- Samples, At > soak_s() / 4],
    [{What, Verdict}
     || H <- Both, {What, Most} <- [{memory_mib, 4.0}, {threads, 0.5}, {fds, 0.5}, {processes, 1.0} | resident()],
        Verdict <- [begin
            Points = [{At, maps:get(What, maps:get(H, Values))} || {At, Values} <- Settled],
            {Mean, Slope, Error} = fit(Points),
            {Growth, Doubt} = {Slope * soak_s(), 2 * Error * soak_s()},
            ct:log("~s, ~p: ~.1f on average; it grows by ~.2f in ~b s (standard error ~.2f)", [?LIB:node(H), What, Mean, Growth, soak_s(), Doubt / 2]),
            %% flat: a growth that the measurement can tell from none must be small; and in the full length it must be able to tell
            if
                Growth - Doubt > Most -> grows;
                Doubt > 2 * Most -> case is_full() of true -> unclear; false -> flat end;
                true -> flat
            end
        end]].

%% The last change of address that it has a path for: what is said afterwards arrives, which is more than may be under way of messages of
%% 1 MiB (twelve of each sender, see liveness_SUITE).
follows(Both, Relay) ->
    ok = quic_dist_relay:set(Relay, quic_dist_relay:fair()),
    ok = quic_dist_relay:rebind(Relay),
    Large = fun() -> [element(1, ?LIB:call(H, ?LOAD, received, [])) || H <- Both] end,
    Before = Large(),
    ?LIB:wait_until(follows, fun() -> lists:all(fun({Then, Now}) -> Now > Then + 24 end, lists:zip(Before, Large())) end, 60000).

%% What the allocators keep of the kernel takes some minutes to settle: in a shorter run its growth says nothing.
resident() -> [{rss_mib, 8.0} || soak_s() >= 150].

sample(Both, Relay, Started, Deadline, Samples) ->
    case millis() of
        Now when Now > Deadline -> lists:reverse(Samples);
        Now ->
            At = (Now - Started) / 1000,
            fault(trunc(At), Relay, soak_s()),
            Values = maps:from_list([{H, #{rss_mib => ?LIB:rss(H) / ?MIB, threads => ?LIB:threads(H), fds => ?LIB:fds(H),
                                           memory_mib => ?LIB:call(H, erlang, memory, [total]) / ?MIB,
                                           processes => ?LIB:call(H, erlang, system_info, [process_count])}} || H <- Both]),
            timer:sleep(max(0, 1000 - (millis() - Now))),
            sample(Both, Relay, Started, Deadline, [{At, Values} | Samples])
    end.

%% In turn, two seconds each with one in between; and the NAT rebinds.
fault(Second, Relay, Duration) ->
    Until = case resident() of [] -> Duration; _ -> Duration div 4 end,
    Every = max(3, Until div ?REBINDS),
    Second < Until andalso Second rem Every =:= Every - 1 andalso Second div Every < ?REBINDS andalso quic_dist_relay:rebind(Relay),
    None = quic_dist_relay:fair(),
    ok = quic_dist_relay:set(Relay, case Second rem 12 of
        1 -> None#{loss => 0.01};
        4 -> None#{reorder => 0.1, reorder_ms => 10};
        7 -> None#{duplicate => 0.1, mutate => 0.01};
        10 -> None#{loss => 1.0};
        2 -> #{};
        5 -> #{};
        8 -> #{};
        _ -> None
    end).

%% The least-squares line through points: mean, slope, and the slope's standard error.
fit(Points) ->
    N = length(Points),
    {Xs, Ys} = lists:unzip(Points),
    {MeanX, Mean} = {lists:sum(Xs) / N, lists:sum(Ys) / N},
    Sxx = lists:sum([(X - MeanX) * (X - MeanX) || X <- Xs]),
    Slope = lists:sum([(X - MeanX) * (Y - Mean) || {X, Y} <- Points]) / Sxx,
    Residuals = lists:sum([math:pow(Y - Mean - Slope * (X - MeanX), 2) || {X, Y} <- Points]),
    {Mean, Slope, math:sqrt(Residuals / (N - 2) / Sxx)}.

millis() -> erlang:monotonic_time(millisecond).
