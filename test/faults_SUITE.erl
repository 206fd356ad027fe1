%% A matrix of faults between two nodes that talk both ways all the time. While the connection lives no message is lost, doubled or
%% reordered; afterwards the nodes connect anew, and nothing is left behind. The suite writes a table: what was sent, what arrived, when it
%% was noticed, what it cost (docs/faults.md has one).
%%
%% Elsewhere: an interface that goes down and up, and addresses (paths_SUITE).
%%
%%   QUIC_DIST_FAULTS=full         each fault lasts longer, and there are more of them
%%   QUIC_DIST_FAULTS_TABLE=FILE   where the table goes, besides the suite's log
-module(faults_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([connection_ends/1, bad_datagrams/1, path_stops/1, mtu_shrinks/1, black_hole/1, rate_drops/1, socket_errors/1, not_permitted/1, no_buffer_space/1,
         no_descriptors/1, disk_full/1,
         memory_pressure/1, clock_jumps/1, epmd_dies/1]).

-define(LIB, quic_dist_test_lib).
-define(NET, quic_dist_test_net).
-define(AGENT, quic_dist_test_agent).
-define(TALK, quic_dist_test_talk).
-define(CGROUP, quic_dist_test_cgroup).
-define(MIB, 1048576).
%% How often the log tells at most that the system does not send, and a bit.
-define(TOLD_EVERY_MS, 10500).
%% Three ticks of a second after the last sign of life, which may be a moment before the fault.
-define(EARLIEST_MS, 2500).

suite() -> [{timetrap, {seconds, seconds(120, 900)}}].

all() ->
    [connection_ends, bad_datagrams, path_stops, black_hole, no_descriptors, disk_full, memory_pressure, clock_jumps, epmd_dies] ++ in_namespaces().

in_namespaces() -> [mtu_shrinks, rate_drops, socket_errors, not_permitted, no_buffer_space].

init_per_suite(Config) ->
    ?LIB:init_suite(Config),
    Table = filename:join(?config(priv_dir, Config), "faults.md"),
    ok = file:write_file(Table, "| fault | messages, each way | longest pause, ms; or noticed after | packets lost, of sent | afterwards |\n"
                                "| --- | --- | --- | --- | --- |\n"),
    [{table, Table} | Config].

end_per_suite(Config) ->
    {ok, Table} = file:read_file(?config(table, Config)),
    ct:log("~ts", [Table]),
    case os:getenv("QUIC_DIST_FAULTS_TABLE") of
        false -> ok;
        File -> ok = file:write_file(File, Table)
    end,
    ?LIB:end_suite(Config).

init_per_testcase(Case, Config) ->
    case {?LIB:init_case(Case, [{C, "it looks into QUIC connections"} || C <- all()], Config), ?NET:available()} of
        {{skip, _} = Skip, _} -> Skip;
        {_, true} ->
            case lists:member(Case, in_namespaces()) of
                true -> [{net, ?NET:start()} | Config];
                false -> Config
            end;
        {_, {false, Why}} ->
            case lists:member(Case, in_namespaces()) of
                true -> {skip, Why};
                false -> Config
            end
    end.

end_per_testcase(_Case, Config) -> ?NET:end_case(Config).

is_full() -> os:getenv("QUIC_DIST_FAULTS") =:= "full".

seconds(Short, Full) ->
    case is_full() of
        true -> Full;
        false -> Short
    end.

%%% What ends the connection

%% It is noticed in time, and with the true reason: of a process that is gone the host tells who sends to it, of everything else the ticks do
%% (net_ticktime is 4 s: 3 to 5 s after the last sign of life). What had arrived by then came in order, with no gap.
connection_ends(Config) ->
    [Killed, Stopped] = [begin
        NameB = ?LIB:name(Tag),
        [A, B] = ?LIB:start_all([#{tag => Tag, args => args(4)}, #{name => NameB, args => args(4)}]),
        {A, B, none, talk(A, B)}
    end || Tag <- ["killed", "stopped"]],
    [Cut, OneWay] = relayed([{"cut", 4}, {"one_way", 4}]),
    Gone = [{io, econnrefused}],
    Ticks = [net_tick_timeout],
    ended("SIGKILL of one node", Killed, fun({_, B, _, _}) -> ?LIB:kill(B) end, [{a, Gone, 3000}],
          fun({_, #{name := Name}, _, _}) -> ?LIB:start(#{name => Name, args => args(4)}) end, Config),
    ended("SIGSTOP of one node", Stopped, fun({_, B, _, _}) -> ?LIB:signal(B, "STOP") end, [{a, Ticks, 6000}],
          fun({A, B, _, _}) ->
              ?LIB:signal(B, "CONT"),
              NodeA = ?LIB:node(A),
              ?LIB:wait_until(given_up, fun() -> not lists:member(NodeA, ?LIB:call(B, erlang, nodes, [connected])) end, 10000),
              B
          end, Config),
    Mended = fun({_, B, Relay, _}) -> quic_dist_relay:set(Relay, #{loss => 0.0}), B end,
    ended("nothing gets through any more", Cut, fun({_, _, Relay, _}) -> quic_dist_relay:set(Relay, #{loss => 1.0}) end,
          [{a, Ticks, 6000}, {b, Ticks, 6000}], Mended, Config),
    %% B hears nothing, and goes. A learns it by its own ticks, for B's CONNECTION_CLOSE waits for room in a congestion window that is full of what
    %% A has not acknowledged (quiche 0.30); B's probes were a sign of life until B's lingering (3 s) was over.
    ended("nothing gets through from the node that dialled, any more", OneWay,
          fun({_, _, Relay, _}) -> quic_dist_relay:set(Relay, #{loss => 1.0, lossy => to_server}) end,
          [{a, [connection_closed | Ticks], 14000}, {b, Ticks, 6000}], Mended, Config).

ended(Fault, {A, B, _, Talk} = Pair, Break, Watchers, Mend, Config) ->
    Sides = [{case Side of a -> A; b -> B end, Reasons, Within} || {Side, Reasons, Within} <- Watchers],
    %% their last sign of life is a moment ago
    ?TALK:resumed(Talk),
    At = quic_dist_test_clock:now_ms(),
    _ = Break(Pair),
    Noticed = noticed([H || {H, _, _} <- Sides], At, #{}),
    Stalled = quic_dist_test_clock:stalled(At),
    StalledBefore = quic_dist_test_clock:stalled(At - 1000),
    Heard = [?TALK:last(H) || {H, _, _} <- Sides],
    Said = [?LIB:call(H, ?TALK, said, []) || {H, _, _} <- Sides],
    [begin
         {Fault, Ms, Stalled, true} = {Fault, Ms, Stalled, Ms - Stalled =< Within},
         {Fault, Ms, true} = {Fault, Ms, Reason =/= net_tick_timeout orelse Ms + StalledBefore >= ?EARLIEST_MS},
         {Fault, Reason, true} = {Fault, Reason, lists:member(Reason, Reasons)}
     end || {{_, Reasons, Within}, {Ms, Reason}} <- lists:zip(Sides, Noticed)],
    Again = Mend(Pair),
    ?LIB:connect(A, Again),
    [pong = ?LIB:call(H, net_adm, ping, [?LIB:node(Other)]) || {H, Other} <- [{A, Again}, {Again, A}]],
    ?TALK:nothing_left(case Again of B -> [A, B]; _ -> [A] end),
    line("| ~ts | ~ts | ~ts | | the next connection works, nothing is left |~n",
         [Fault, lists:join(" and ", [io_lib:format("~w said, ~w heard", [S, H]) || {S, H} <- lists:zip(Said, Heard)]),
          lists:join(" and ", [io_lib:format("~w (`~p`)", [Ms, Reason]) || {Ms, Reason} <- Noticed])], Config).

%% How long after At each has seen the other go, and why.
noticed(Handles, At, Seen) ->
    case [H || H <- Handles, not is_map_key(H, Seen)] of
        [] ->
            [maps:get(H, Seen) || H <- Handles];
        Left ->
            timer:sleep(10),
            Events = [{H, Reason} || H <- Left, {nodedown, _, Reason} <- ?LIB:call(H, ?AGENT, node_events, [])],
            Now = erlang:monotonic_time(millisecond),
            noticed(Handles, At, maps:merge(Seen, maps:from_list([{H, {Now - At, Reason}} || {H, Reason} <- Events])))
    end.

%%% What happens to datagrams

%% Several pairs of nodes at once, each with a network of its own. Everything arrives, in order; and where something is lost in the same
%% way all the time, what that costs shows in any window: the best of three counts, for the machine has other things to do now and then.
bad_datagrams(Config) ->
    Short = [{"1 % lost", #{loss => 0.01}, 1000}, {"30 % lost", #{loss => 0.3}, 10000},
             {"20 % overtaken, 20 % doubled, 5 % damaged", #{reorder => 0.2, reorder_ms => 20, duplicate => 0.2, mutate => 0.05}, 3000}],
    Long = [{"0.1 % lost", #{loss => 0.001}, 1000}, {"10 % lost", #{loss => 0.1}, 3000}, {"20 % overtaken", #{reorder => 0.2}, 1000},
            {"20 % doubled", #{duplicate => 0.2}, 1000}, {"5 % damaged", #{mutate => 0.05}, 3000}],
    Faults = case is_full() of true -> Short ++ Long; false -> Short end,
    Pairs = relayed([{"bad", 60} || _ <- Faults]),
    Pauses = windows(3, [{Options, Longest, Pair} || {{_, Options, Longest}, Pair} <- lists:zip(Faults, Pairs)]),
    [begin
         Stats = quic_dist_relay:stats(Relay),
         %% others may have had another window meanwhile
         _ = ?TALK:pauses(Talk),
         finished(Name ++ [" (", lists:join(", ", [io_lib:format("~w ~w", [N, What]) || {What, N} <- maps:to_list(Stats), N > 0]), ")"], Longest, maps:get(Pair, Pauses), Pair, Config)
     end || {{Name, _, Longest}, {_, _, Relay, Talk} = Pair} <- lists:zip(Faults, Pairs)].

%% The pauses of each pair, in the first window in which they were no longer than they may be.
windows(_, []) -> #{};
windows(0, Left) -> error({paused_each_time, [{Options, Longest} || {Options, Longest, _} <- Left]});
windows(N, Tried) ->
    _ = [?TALK:pauses(Talk) || {_, _, {_, _, _, Talk}} <- Tried],
    [ok = quic_dist_relay:set(Relay, Options) || {Options, _, {_, _, Relay, _}} <- Tried],
    timer:sleep(seconds(4, 30) * 1000),
    [ok = quic_dist_relay:set(Relay, quic_dist_relay:fair()) || {_, _, {_, _, Relay, _}} <- Tried],
    Seen = [begin
                ok = ?TALK:resumed(Talk),
                {T, [Pause || {_, Pause} <- ?TALK:pauses(Talk)]}
            end || {_, _, {_, _, _, Talk}} = T <- Tried],
    ct:log("pauses in a window: ~w", [[{Options, Pauses} || {{Options, _, _}, Pauses} <- Seen]]),
    {Good, Bad} = lists:partition(fun({{_, Longest, _}, Pauses}) -> lists:max(Pauses) =< Longest end, Seen),
    maps:merge(windows(N - 1, [T || {T, _} <- Bad]), maps:from_list([{Pair, Pauses} || {{_, _, Pair}, Pauses} <- Good])).

%% Nothing gets through, or nothing one way. A probe time-out doubles (RFC 9002, section 6.2), so that the pause is at most twice as long as the fault, and a bit.
path_stops(Config) ->
    Stops = [{1, both}, {3, to_server}, {3, to_client}, {5, both}] ++ case is_full() of true -> [{60, both}]; false -> [] end,
    Pairs = relayed([{"stops", 8 * S + 60} || {S, _} <- Stops]),
    [ok = quic_dist_relay:set(Relay, #{loss => 1.0, lossy => Way}) || {{_, Way}, {_, _, Relay, _}} <- lists:zip(Stops, Pairs)],
    Began = quic_dist_test_clock:now_ms(),
    %% as long as it was, and not as it should have been
    {Lasted, _} = lists:mapfoldl(fun({{Stop, _}, {_, _, Relay, _}}, Before) ->
                                         timer:sleep((Stop - Before) * 1000),
                                         ok = quic_dist_relay:set(Relay, quic_dist_relay:fair()),
                                         {quic_dist_test_clock:now_ms() - Began, Stop}
                                 end, 0, lists:zip(Stops, Pairs)),
    timer:sleep(element(1, lists:last(Stops)) * 1000),
    [finished(io_lib:format("nothing gets through~s for ~b s", [way(Way), Stop]), 2 * Millis + 1000, Pair, Config)
     || {{Stop, Way}, Millis, Pair} <- lists:zip3(Stops, Lasted, Pairs)].

way(both) -> "";
way(to_server) -> " from the node that dialled";
way(to_client) -> " to the node that dialled".

%% Large datagrams vanish from one moment on, and nothing says so: quiche's search for the path MTU is over by then.
black_hole(Config) ->
    [{A, B, Relay, _} = Pair] = relayed([{"hole", 60}]),
    settled(A, B, 9000),
    ok = quic_dist_relay:set(Relay, #{mtu => 1400}),
    _ = ?LIB:run(A, fun bulk/0, 60000),
    %% binary search, three attempts for each size
    ?LIB:wait_until(mtu, fun() -> lists:all(fun(M) -> M > 1300 andalso M =< 1400 end, [mtu(A, B), mtu(B, A)]) end, 20000),
    Mtus = [mtu(H, Other) || {H, Other} <- [{A, B}, {B, A}]],
    finished(io_lib:format("datagrams over 1400 bytes vanish; the MTU found then: ~w", [Mtus]), 3000, Pair, Config).

%% The same at the interface, where the system says so.
mtu_shrinks(Config) ->
    Net = ?config(net, Config),
    [begin "" = ?NET:ip(Net, S, "link set eth mtu 9000") end || S <- [a, b]],
    {A, B, _, _} = Pair = in_net(Net, 60),
    settled(A, B, 8000),
    [begin "" = ?NET:ip(Net, S, "link set eth mtu 1400") end || S <- [a, b]],
    _ = ?LIB:run(A, fun bulk/0, 60000),
    ?LIB:wait_until(mtu, fun() -> lists:all(fun(M) -> M > 1300 andalso M =< 1372 end, [mtu(A, B), mtu(B, A)]) end, 20000),
    Mtus = [mtu(H, Other) || {H, Other} <- [{A, B}, {B, A}]],
    finished(io_lib:format("the interfaces' MTU goes from 9000 to 1400; the MTU found then: ~w", [Mtus]), 3000, Pair, Config).

settled(A, B, Mtu) ->
    _ = ?LIB:run(A, fun bulk/0, 60000),
    ?LIB:wait_until({mtu, Mtu}, fun() -> mtu(A, B) >= Mtu andalso mtu(B, A) >= Mtu end, 20000).

%% Large messages there and back.
bulk() ->
    [Node] = nodes(),
    Bytes = rand:bytes(?MIB),
    [Bytes = erpc:call(Node, erlang, hd, [[Bytes]], 30000) || _ <- lists:seq(1, 10)],
    ok.

mtu(H, Other) ->
    #{mtu := Mtu} = ?LIB:connection(H, Other),
    Mtu.

%% 1 Mbit/s carries less than is said meanwhile. Its queue overflows, which the socket is told as ENOBUFS.
rate_drops(Config) ->
    Net = ?config(net, Config),
    {A, B, _, _} = Pair = in_net(Net, 60),
    [begin "" = ?NET:sh(Net, S, "tc qdisc add dev eth root tbf rate 1mbit burst 16kb latency 50ms") end || S <- [a, b]],
    timer:sleep(seconds(4, 60) * 1000),
    [begin "" = ?NET:sh(Net, S, "tc qdisc del dev eth root") end || S <- [a, b]],
    [true = send_errors(H) > 0 || H <- [A, B]],
    finished("1 Mbit/s", 3000, Pair, Config).

send_errors(H) ->
    #{endpoints := [#{send_errors := Errors} | _]} = ?LIB:call(H, quic_dist, info, []),
    Errors.

%% The system refuses to send: one way, then the other. The log says what it said, of each, for it comes long enough after the one before.
socket_errors(Config) ->
    Net = ?config(net, Config),
    {A, B, _, Talk} = Pair = in_net(Net, 60),
    [ok = ?LIB:call(H, ?AGENT, keep_log, []) || H <- [A, B]],
    Sides = [{a, A, B, ?NET:host(Net, b)}, {b, B, A, ?NET:host(Net, a)}],
    Errors = [{"prohibit", "Permission denied"}, {"unreachable", "No route to host"}, {"throw", "Network is unreachable"}],
    Lasted = [begin
         Ms = [begin
              Before = send_errors(H),
              Began = erlang:monotonic_time(millisecond),
              "" = ?NET:ip(Net, Side, ["route add ", Type, " ", To]),
              timer:sleep(1000),
              ?LIB:wait_until({Type, Side}, fun() -> send_errors(H) > Before end, 10000),
              "" = ?NET:ip(Net, Side, ["route del ", Type, " ", To]),
              Millis = erlang:monotonic_time(millisecond) - Began,
              %% until the probe time-out, which has doubled, is behind it: two faults in a row are a longer one
              timer:sleep(1500),
              ?TALK:resumed(Talk),
              Millis
          end || {Side, H, _, To} <- Sides],
         Lines = fun(H, Other, To) -> [L || L <- refusals(H, Other, To), string:find(L, Error) =/= nomatch] end,
         [begin
              ?LIB:wait_until({Type, Side}, fun() -> Lines(H, Other, To) =/= [] end, 10000),
              {Type, Side, [_]} = {Type, Side, Lines(H, Other, To)}
          end || {Side, H, Other, To} <- Sides],
         %% one line in ten seconds
         Type =:= "throw" orelse timer:sleep(?TOLD_EVERY_MS),
         lists:max(Ms)
     end || {Type, Error} <- Errors],
    finished("the socket says EACCES, EHOSTUNREACH, ENETUNREACH, 1 s each, on each side", 2 * lists:max(Lasted) + 1000, Pair, Config).

%% Lines of the log about what the system would not send to the other node.
refusals(H, Other, To) ->
    Parts = ["sending to", atom_to_list(?LIB:node(Other)), To],
    [L || {warning, L} <- ?LIB:call(H, ?AGENT, log_lines, []), lists:all(fun(Part) -> string:find(L, Part) =/= nomatch end, Parts)].

%% A firewall of the host's own drops what the node sends.
not_permitted(Config) ->
    Rules = "add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o meta l4proto udp drop",
    case os:find_executable("nft") of
        false -> {skip, "there is no `nft' (Debian: nftables)"};
        _ -> refused("EPERM", "Operation not permitted", ["nft \"", Rules, "\""], "nft delete table inet t", Config)
    end.

%% The interface's queue has room for nothing.
no_buffer_space(Config) ->
    refused("ENOBUFS", "No buffer space available", "tc qdisc add dev eth root pfifo limit 0", "tc qdisc del dev eth root", Config).

%% Every sendmsg fails with this error, on one side and then on the other. When it is over nobody says so; the nodes find out without
%% waiting for a probe time-out that has doubled meanwhile. The log has a line for it, not one for each packet.
refused(Name, Error, Begin, End, Config) ->
    Net = ?config(net, Config),
    Seconds = seconds(3, 20),
    {A, B, _, Talk} = Pair = in_net(Net, 60),
    [ok = ?LIB:call(H, ?AGENT, keep_log, []) || H <- [A, B]],
    Sides = [{a, A, B, ?NET:host(Net, b)}, {b, B, A, ?NET:host(Net, a)}],
    {Trains, Lasted} = lists:unzip([begin
         Before = send_errors(H),
         Began = erlang:monotonic_time(millisecond),
         "" = ?NET:sh(Net, Side, Begin),
         timer:sleep(Seconds * 1000),
         ?LIB:wait_until({Name, Side}, fun() -> send_errors(H) > Before + 2 end, 10000),
         "" = ?NET:sh(Net, Side, End),
         Millis = erlang:monotonic_time(millisecond) - Began,
         timer:sleep(1000),
         %% two faults in a row are a longer one
         ?TALK:resumed(Talk),
         {send_errors(H) - Before, Millis}
     end || {Side, H, _, _} <- Sides]),
    [begin
         [Line | More] = refusals(H, Other, To),
         ct:log("~ts", [Line]),
         true = string:find(Line, Error) =/= nomatch,
         true = length(More) =< Seconds div 10
     end || {_, H, Other, To} <- Sides],
    finished(io_lib:format("the socket says ~ts for ~b s on each side (~w and ~w times)", [Name, Seconds | Trains]),
             lists:max(Lasted) + 1000, Pair, Config).

%%% What happens to a node

%% A file descriptor is needed by nothing that a connection does, nor by a node that is dialled. To dial takes one: to ask EPMD, which is
%% left out here, and to ask the system for a route. What that fails for is in the log.
no_descriptors(Config) ->
    [A, B, C, D] = ?LIB:start_all([#{tag => "fd_a", limits => "ulimit -n 100", args => ["-epmd_module", "quic_dist_test_epmd" | args(60)]} |
                                   [#{tag => T, args => args(60)} || T <- ["fd_b", "fd_c", "fd_d"]]]),
    [NodeA, NodeC, NodeD] = [?LIB:node(H) || H <- [A, C, D]],
    Alive = hd(string:lexemes(atom_to_list(NodeD), "@")),
    {port, Port, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    ok = ?LIB:call(A, ?AGENT, keep_log, []),
    Failures = fun() -> [L || {error, L} <- ?LIB:call(A, ?AGENT, log_lines, []), string:find(L, "cannot connect to") =/= nomatch] end,
    Dial = fun(H, Node) -> ?LIB:call(H, net_kernel, connect_node, [Node]) end,
    %% whatever is loaded for a failure is loaded: that takes descriptors as well
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => {only, ?LIB:free_port()}}]),
    false = Dial(A, NodeD),
    ?LIB:run(A, fun() -> logger:error("an error of ~ts: ~p", ["the test's", {io, emfile}]) end),
    ?LIB:connect(C, A),
    ?LIB:disconnect(C, A),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => {only, Port}}]),
    Pair = {A, B, none, talk(A, B)},
    [] = Failures(),
    {Holder, emfile} = ?LIB:run(A, fun() ->
        Self = self(),
        Pid = spawn(fun() -> Self ! {self(), hog([])}, receive release -> ok end end),
        receive {Pid, Error} -> {Pid, Error} end
    end),
    true = Dial(C, NodeA),
    ?LIB:await_connected(C, A),
    false = Dial(A, NodeD),
    [Line] = Failures(),
    ct:log("~ts", [Line]),
    [true = string:find(Line, Part) =/= nomatch || Part <- [atom_to_list(NodeD), "too many open files"]],
    timer:sleep(seconds(1, 5) * 1000),
    _ = ?LIB:run(A, fun() -> exit(Holder, kill) end),
    ?LIB:connect(A, D),
    [true = lists:member(Node, ?LIB:call(A, erlang, nodes, [connected])) || Node <- [NodeC, NodeD]],
    finished("no file descriptor is left (the node is dialled by another, and cannot dial, which the log says)", 2000, Pair, Config).

hog(Files) ->
    case file:open("/dev/null", [read, raw]) of
        {ok, File} -> hog([File | Files]);
        {error, Reason} -> put(files, Files), Reason
    end.

%% Where the node logs, and is.
disk_full(Config) ->
    Dir = filename:join(?config(priv_dir, Config), "full"),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    case ?NET:available() of
        {false, Why} -> {skip, "a file system of one's own: " ++ Why};
        true ->
            Log = "[{handler, default, logger_std_h, #{config => #{file => \"log\"}}}]",
            "" = os:cmd("mount -t tmpfs -o size=64k tmpfs " ++ Dir),
            try
                [A, B] = ?LIB:start_all([#{tag => "full", limits => "cd " ++ Dir, args => ["-kernel", "logger", Log | args(60)]},
                                         #{tag => "b", args => args(60)}]),
                _ = ?LIB:run(A, fun() -> file:write_file("filler", binary:copy(<<0>>, 128 * 1024)) end),
                {error, enospc} = ?LIB:run(A, fun() -> file:write_file("more", binary:copy(<<0>>, 8192)) end),
                Pair = {A, B, none, talk(A, B)},
                [?LIB:run(A, fun() -> logger:error("a line that has no room: ~p", [lists:seq(1, 1000)]) end) || _ <- lists:seq(1, 100)],
                timer:sleep(1000),
                finished("the disk is full", 1000, Pair, Config),
                ?LIB:kill(A)
            after
                os:cmd("umount -l " ++ Dir)
            end
    end.

%% The dialling node may have 8 MiB more than it uses, and fills these and more with what it writes to a file: the kernel has to find room for
%% every page that it takes.
memory_pressure(Config) ->
    case ?CGROUP:make("qdt" ++ os:getpid()) of
        none -> {skip, "no control group for memory can be made"};
        {ok, Group} ->
            try
                %% and EPMD with it, if there is none yet
                B = ?LIB:start(#{tag => "mem_b", args => args(60)}),
                A = ?LIB:start(#{tag => "mem_a", limits => ?CGROUP:enter(Group), args => args(60)}),
                Pair = {A, B, none, talk(A, B)},
                File = filename:join(?config(priv_dir, Config), "pages"),
                Hog = ?LIB:run(A, fun() -> spawn(fun() -> Bytes = rand:bytes(4 * ?MIB), receive go -> fill(File, Bytes) end end) end),
                ?LIB:wait_until(hog, fun() -> {status, waiting} =:= ?LIB:call(A, erlang, process_info, [Hog, status]) end, 10000),
                Usage = ?CGROUP:usage(Group),
                %% it is in there, all of it
                true = Usage > ?LIB:rss(A) div 2,
                ok = ?CGROUP:limit(Group, Usage + 8 * ?MIB),
                Before = ?CGROUP:times(Group),
                _ = ?LIB:run(A, fun() -> Hog ! go end),
                timer:sleep(seconds(3, 20) * 1000),
                _ = ?LIB:run(A, fun() -> exit(Hog, kill), ok end),
                Times = ?CGROUP:times(Group) - Before,
                true = Times > 0,
                _ = file:delete(File),
                ct:log("~.1f MiB used, ~.1f of them resident", [Usage / ?MIB, ?LIB:rss(A) / ?MIB]),
                finished(io_lib:format("the dialling node may have 8 MiB more than it uses (~b), and writes to a file; the kernel had to make room ~b times",
                                       [Usage div ?MIB, Times]), 3000, Pair, Config),
                ?LIB:kill(A)
            after
                ?CGROUP:delete(Group)
            end
    end.

fill(File, Bytes) ->
    {ok, Io} = file:open(File, [write, raw, binary]),
    [ok = file:write(Io, Bytes) || _ <- lists:seq(1, 32)],
    ok = file:close(Io),
    fill(File, Bytes).

%% The wall clock of one node jumps, by a library that is loaded before the C library. It dials and is dialled meanwhile by nodes whose clocks
%% are right, or have been wrong since they were started: who trusts by the cookie need not have the same time (src/identity/mod.rs).
clock_jumps(Config) ->
    Dir = ?config(priv_dir, Config),
    case clock(Dir) of
        {error, Why} -> {skip, Why};
        {ok, Library} ->
            File = fun(Tag) -> filename:join(Dir, Tag) end,
            %% A host without a battery, before it has asked for the time, and one of somebody who typed the wrong year.
            Wrong = [{"clock_1970", 86400 - os:system_time(second)}, {"clock_ahead", 2 * 365 * 86400}],
            Tags = [{"clock_a", 0}, {"clock_b", 0}, {"clock_c", 0} | Wrong],
            [ok = file:write_file(File(Tag), <<Jump:64/native>>) || {Tag, Jump} <- Tags],
            [A, B | Others] = ?LIB:start_all([#{tag => Tag, env => [{"LD_PRELOAD", Library}, {"QUIC_DIST_CLOCK", File(Tag)}], args => args(60)} || {Tag, _} <- Tags]),
            Pair = {A, B, none, talk(A, B)},
            Ahead = fun(H) -> ?LIB:call(H, os, system_time, [second]) - os:system_time(second) end,
            [true = abs(Ahead(H) - Jump) < 60 || {H, {_, Jump}} <- lists:zip([A, B | Others], Tags)],
            [begin
                 ok = set_clock(File("clock_a"), Jump),
                 timer:sleep(1000),
                 [true = abs(Ahead(H) - By) < 60 || {H, By} <- [{A, Jump}, {B, 0}]],
                 [begin
                      ?LIB:connect(Dialler, Dialled),
                      pong = ?LIB:call(Dialler, net_adm, ping, [?LIB:node(Dialled)]),
                      ?LIB:disconnect(Dialler, Dialled)
                  end || H <- Others, {Dialler, Dialled} <- [{A, H}, {H, A}]]
             end || Jump <- [3600, -3500, 2 * 86400, -2 * 86400, 0]],
            finished("one node's wall clock is an hour ahead, one behind, two days ahead, two behind; it connects anew, also with nodes that were started in 1970 and two years ahead",
                     2000, Pair, Config)
    end.

%% Never shorter meanwhile: the nodes have it in their memory.
set_clock(File, Jump) ->
    {ok, Io} = file:open(File, [read, write, raw, binary]),
    ok = file:pwrite(Io, 0, <<Jump:64/native>>),
    file:close(Io).

clock(Dir) ->
    Source = filename:join(Dir, "clock.c"),
    Library = filename:join(Dir, "clock.so"),
    ok = file:write_file(Source, [
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <fcntl.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n#include <sys/time.h>\n#include <time.h>\n"
        "static volatile long *jump;\n"
        "static long ahead(void) {\n"
        "  if (!jump) { const char *f = getenv(\"QUIC_DIST_CLOCK\"); int fd = f ? open(f, O_RDONLY) : -1;\n"
        "    void *p = fd < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);\n"
        "    static volatile long none; jump = p == MAP_FAILED ? &none : p; }\n"
        "  return *jump; }\n"
        "int clock_gettime(clockid_t id, struct timespec *ts) {\n"
        "  static int (*real)(clockid_t, struct timespec *); if (!real) real = dlsym(RTLD_NEXT, \"clock_gettime\");\n"
        "  int r = real(id, ts); if (r == 0 && id == CLOCK_REALTIME) ts->tv_sec += ahead(); return r; }\n"
        "int gettimeofday(struct timeval *restrict tv, void *restrict tz) {\n"
        "  struct timespec ts; (void)tz; clock_gettime(CLOCK_REALTIME, &ts); tv->tv_sec = ts.tv_sec; tv->tv_usec = ts.tv_nsec / 1000; return 0; }\n"
        "time_t time(time_t *t) { struct timespec ts; clock_gettime(CLOCK_REALTIME, &ts); if (t) *t = ts.tv_sec; return ts.tv_sec; }\n"]),
    case os:cmd(lists:concat(["cc -shared -fPIC -O1 -o ", Library, " ", Source, " -ldl 2>&1"])) of
        "" -> {ok, Library};
        Error -> {error, "no C compiler: " ++ Error}
    end.

%% EPMD is needed to find a node, not to keep it. When there is one again, nodes tell it their names anew.
epmd_dies(Config) ->
    Port = integer_to_list(?LIB:free_port()),
    Env = [{"ERL_EPMD_PORT", Port}],
    Epmd = epmd(Port),
    [A, B] = ?LIB:start_all([#{tag => T, env => Env, args => ["-start_epmd", "false" | args(60)]} || T <- ["epmd_a", "epmd_b"]]),
    Pair = {A, B, none, talk(A, B)},
    stop_epmd(Epmd),
    timer:sleep(1500),
    Again = epmd(Port),
    %% what OTP's erl_epmd takes to look again
    [?LIB:wait_until({registered, H}, fun() -> {ok, Names} = ?LIB:call(H, erl_epmd, names, [{127, 0, 0, 1}]), length(Names) =:= 2 end, 30000) || H <- [A, B]],
    finished("EPMD dies, and is started again", 1000, Pair, Config),
    ?LIB:disconnect(A, B),
    ?LIB:connect(B, A),
    stop_epmd(Again).

epmd(Port) ->
    Epmd = open_port({spawn_executable, os:find_executable("epmd")}, [{args, ["-port", Port]}, exit_status, stderr_to_stdout]),
    ?LIB:wait_until(epmd, fun() -> string:find(os:cmd("epmd -port " ++ Port ++ " -names"), "up and running") =/= nomatch end, 10000),
    Epmd.

stop_epmd(Port) ->
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    "" = os:cmd("kill " ++ integer_to_list(Pid)),
    receive {Port, {exit_status, _}} -> ok after 10000 -> error(deadline) end.

%%% Pairs

%% A fault of one pair of nodes does not make `global' take the others apart.
args(TickTime) ->
    ["-kernel", "net_ticktime", integer_to_list(TickTime), "dist_auto_connect", "never", "prevent_overlapping_partitions", "false"].

%% Connected, watched, and talking.
talk(A, B) ->
    [ok = ?LIB:call(H, ?AGENT, watch_nodes, []) || H <- [A, B]],
    ?LIB:connect(A, B),
    ?TALK:start(A, B, 1000).

%% Each pair through a relay of its own.
relayed(List) ->
    Nodes = ?LIB:start_all([#{tag => Tag, args => ["-epmd_module", "quic_dist_test_epmd" | args(TickTime)]} || {Tag, TickTime} <- List, _ <- [a, b]]),
    [begin
         Alive = hd(string:lexemes(atom_to_list(?LIB:node(B)), "@")),
         {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
         {Relay, Port} = quic_dist_relay:start(#{to => PortB}),
         ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
         {A, B, Relay, talk(A, B)}
     end || {A, B} <- in_twos(Nodes)].

in_twos([A, B | Rest]) -> [{A, B} | in_twos(Rest)];
in_twos([]) -> [].

in_net(Net, TickTime) ->
    {A, B} = ?NET:start_nodes(Net, "quic", args(TickTime)),
    {A, B, none, talk(A, B)}.

%% The fault is over. All that was said arrives, the connection is the one it was, and after it comes another; a line for the table.
finished(Fault, Longest, Pair, Config) -> finished(Fault, Longest, [0, 0], Pair, Config).

%% There were such pauses already.
finished(Fault, Longest, Before, {_, _, Relay, Talk}, Config) ->
    is_pid(Relay) andalso quic_dist_relay:set(Relay, quic_dist_relay:fair()),
    Said = ?TALK:finish(Talk),
    Pauses = [max(Was, Pause) || {Was, {_, Pause}} <- lists:zip(Before, ?TALK:pauses(Talk))],
    [[nodeup] = [What || E <- ?LIB:call(H, ?AGENT, node_events, []), What <- [element(1, E)], element(2, E) =:= ?LIB:node(Other)] || {H, Other} <- Talk],
    Infos = [?LIB:connection(H, Other) || {H, Other} <- Talk],
    Lost = [io_lib:format("~b of ~b", [L, S]) || #{packets_lost := L, packets_sent := S} <- Infos],
    ?TALK:again(Talk),
    line("| ~ts | ~w and ~w | ~w and ~w | ~ts and ~ts | the next connection works, nothing is left |~n", [Fault | Said ++ Pauses ++ Lost], Config),
    [true = P =< Longest || P <- Pauses],
    ok.

line(Format, Values, Config) ->
    Line = io_lib:format(Format, Values),
    ok = file:write_file(?config(table, Config), unicode:characters_to_binary(Line), [append]),
    ct:log("~ts", [Line]).
