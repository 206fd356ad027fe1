%% An address changes under a connection: what a NAT makes of the dialling node's, the dialling node's own, the dialled node's own.
%% Messages flow both ways all the time. nodes() stays as it is, no message is lost, traffic goes on within a second, and a line of the
%% log says from where to where. Afterwards the next connection works, and nothing is left behind. `inet_tcp' loses the node, each time that it
%% is shown beside it: the hosts are network namespaces, where there may be any. In nat_rebinds and dialled_node_is_elsewhere a relay is the
%% NAT, or the two addresses of a node: it needs no namespaces, but carries UDP only, so there is nothing beside it. (nat_forgets and
%% dialled_host_moves_unheard are the same with both carriers.) An interface or an address that is gone for two seconds and comes back is no
%% change of address: TCP outlives it as well.
-module(paths_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([nat_rebinds/1, nat_forgets/1, dialling_host_moves/1, dialled_host_moves/1, dialled_host_moves_unheard/1, dialled_node_is_elsewhere/1,
         address_is_gone_for_a_while/1, interface_down_and_up/1]).

-define(LIB, quic_dist_test_lib).
-define(NET, quic_dist_test_net).
-define(AGENT, quic_dist_test_agent).
-define(TALK, quic_dist_test_talk).
%% Of net_ticktime: long enough for a change, short enough to see what TCP makes of it.
-define(TICKTIME_S, 8).
%% What traffic may pause for.
-define(PAUSE_MS, 1000).
-define(GONE_MS, 2000).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [nat_rebinds, dialled_node_is_elsewhere, nat_forgets, dialling_host_moves, dialled_host_moves, dialled_host_moves_unheard, address_is_gone_for_a_while,
     interface_down_and_up].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).

init_per_testcase(Case, Config) when Case =:= nat_rebinds; Case =:= dialled_node_is_elsewhere -> ?LIB:init_case(Case, [{Case, "the relay carries UDP"}], Config);
init_per_testcase(Case, Config) ->
    Needs = lists:member(Case, [nat_forgets, dialled_host_moves_unheard]) andalso os:find_executable("nft") =:= false,
    case {?LIB:init_case(Case, [{Case, "it is both carriers' case already"}], Config), ?NET:available()} of
        {{skip, _} = Skip, _} -> Skip;
        {_, {false, Why}} -> {skip, Why};
        {_, true} when Needs -> {skip, "there is no `nft' (Debian: nftables)"};
        {_, true} when Case =:= nat_forgets ->
            case ?NET:start_nat() of
                {ok, Net} -> [{net, Net} | Config];
                {error, Why} -> {skip, "no NAT of the kernel's: " ++ Why}
            end;
        {_, true} -> [{net, ?NET:start()} | Config]
    end.

end_per_testcase(_Case, Config) -> ?NET:end_case(Config).

%%% Cases

nat_rebinds(_Config) ->
    {A, B, Alive, PortB} = behind_relays(),
    {Relay, Port} = quic_dist_relay:start(#{to => PortB}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
    Talk = connected(A, B),
    Before = peer(B, A),
    ok = quic_dist_relay:rebind(Relay),
    timer:sleep(2000),
    go_on(Talk),
    ?LIB:wait_until(moved, fun() -> peer(B, A) =/= Before end, 10000),
    ?LIB:wait_until(told, fun() -> has_line(B, ["goes on" | [quic_dist_log:peer(P) || P <- [Before, peer(B, A)]]]) end, 10000),
    ok = quic_dist_relay:rebind(Relay),
    timer:sleep(2000),
    go_on(Talk),
    ends_well(Talk),
    quic_dist_relay:stop(Relay).

%% A NAT of the kernel's, for either carrier.
nat_forgets(Config) ->
    Net = ?config(net, Config),
    {A, B} = nodes_in(Net, "quic"),
    Tcp = on_tcp(nodes_in(Net, "inet_tcp")),
    Talk = connected(A, B),
    Before = peer(B, A),
    At = os:system_time(millisecond),
    First = ?NET:forget(Net),
    timer:sleep(2000),
    go_on(Talk, First),
    ?LIB:wait_until(moved, fun() -> peer(B, A) =/= Before end, 10000),
    ?LIB:wait_until(told, fun() -> has_line(B, ["goes on" | [quic_dist_log:peer(P) || P <- [Before, peer(B, A)]]]) end, 10000),
    Second = ?NET:forget(Net),
    timer:sleep(2000),
    go_on(Talk, Second),
    lost(Tcp, At),
    ends_well(Talk).

%% Where the node was dialled nothing answers any more, and nobody says a word; but EPMD says another port by then.
dialled_node_is_elsewhere(_Config) ->
    {A, B, Alive, PortB} = behind_relays(),
    [{First, Port}, {Second, OtherPort}] = [quic_dist_relay:start(#{to => PortB}) || _ <- [1, 2]],
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => Port}]),
    Talk = connected(A, B),
    {_, Port} = peer(A, B),
    ok = quic_dist_relay:set(First, #{loss => 1.0}),
    timer:sleep(1000),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => OtherPort}]),
    found(A, Talk, quic_dist_log:peer({{127, 0, 0, 1}, OtherPort})),
    {_, OtherPort} = peer(A, B),
    [quic_dist_relay:stop(Relay) || Relay <- [First, Second]].

behind_relays() ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-epmd_module", "quic_dist_test_epmd" | args()]} || T <- ["a", "b"]]),
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(B)), "@")),
    {port, PortB, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    {A, B, Alive, PortB}.

%% The nodes have lost each other's addresses, and discovery knows better by now: it is asked, and traffic goes on within a second of that.
%% How long it went on without.
found(A, Talk, Address) ->
    ?LIB:wait_until(sought, fun() -> has_line(A, ["is looked for", Address]) end, 6000),
    Known = erlang:monotonic_time(millisecond),
    ?LIB:wait_until(moved, fun() -> has_line(A, ["goes on", Address]) end, 10000),
    Found = erlang:monotonic_time(millisecond) - Known,
    true = Found - quic_dist_test_clock:longest(Known) =< ?PAUSE_MS,
    timer:sleep(1000),
    Pauses = ?TALK:go_on(Talk, 7000),
    ct:log("~s: moved ~b ms after the address was known; messages and the longest pause in ms, on each side: ~w", [Address, Found, Pauses]),
    timer:sleep(500),
    go_on(Talk),
    ends_well(Talk).

dialling_host_moves(Config) -> host_moves(a, Config).

dialled_host_moves(Config) -> host_moves(b, Config).

%% A second address, and then the first one goes. A node dials B from A.
host_moves(Side, Config) ->
    Net = ?config(net, Config),
    First = ?NET:host(Net, Side),
    Second = First ++ "0",
    Third = First ++ "1",
    {A, B} = nodes_in(Net, "quic"),
    Tcp = on_tcp(nodes_in(Net, "inet_tcp")),
    Talk = connected(A, B),
    At = os:system_time(millisecond),
    move(Net, Side, First, Second),
    timer:sleep(2000),
    go_on(Talk),
    [?LIB:wait_until(told, fun() -> has_line(H, ["goes on", First ++ ":", Second ++ ":"]) end, 10000) || H <- [A, B]],
    %% without overlap
    Began = erlang:monotonic_time(millisecond),
    "" = ?NET:sh(Net, Side, ["ip addr del ", Second, "/24 dev eth && ip addr add ", Third, "/24 dev eth"]),
    Lasted = erlang:monotonic_time(millisecond) - Began,
    timer:sleep(2000),
    go_on(Talk, Lasted),
    timer:sleep(?TICKTIME_S * 1250),
    go_on(Talk),
    %% and back to where nodes are dialled
    move(Net, Side, Third, First),
    timer:sleep(1000),
    go_on(Talk),
    lost(Tcp, At),
    ends_well(Talk).

move(Net, Side, From, To) ->
    "" = ?NET:ip(Net, Side, ["addr add ", To, "/24 dev eth"]),
    "" = ?NET:ip(Net, Side, ["addr del ", From, "/24 dev eth"]).

%% The first address is gone before there is a second, and a firewall of A's lets in what comes from where A has sent to only: the word that B
%% sends from its second address is not heard. But B's name resolves to that.
dialled_host_moves_unheard(Config) ->
    Net = ?config(net, Config),
    First = ?NET:host(Net, b),
    Second = First ++ "0",
    Host = "elsewhere.test",
    Ip = fun(Text) -> {ok, Parsed} = inet:parse_address(Text), Parsed end,
    Rc = filename:join(?config(priv_dir, Config), "inetrc"),
    ok = file:write_file(Rc, io_lib:format("{lookup, [file]}.~n{host, ~w, [~p]}.~n", [Ip(First), Host])),
    Rules = "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i meta l4proto udp ct state new drop",
    "" = ?NET:sh(Net, a, ["nft \"", Rules, "\""]),
    [{A, B}, Pair] = [begin
        [HandleA, HandleB] = ?LIB:start_all([#{name => lists:concat([Side, Carrier, "@", At]), carrier => Carrier, namespace => ?NET:namespace(Net, Side),
                                               env => [{"ERL_INETRC", Rc}], args => ["-start_epmd", "false" | args()]}
                                             || {Side, At} <- [{a, ?NET:host(Net, a)}, {b, Host}]]),
        {HandleA, HandleB}
    end || Carrier <- ["quic", "inet_tcp"]],
    Tcp = on_tcp(Pair),
    Talk = connected(A, B),
    Gone = os:system_time(millisecond),
    "" = ?NET:ip(Net, b, ["addr del ", First, "/24 dev eth"]),
    timer:sleep(500),
    "" = ?NET:ip(Net, b, ["addr add ", Second, "/24 dev eth"]),
    timer:sleep(500),
    _ = ?TALK:pauses(Talk),
    timer:sleep(500),
    %% nothing is heard of that
    [{0, _}, {0, _}] = ?TALK:pauses(Talk),
    [ok = ?LIB:run(H, fun() -> ok = inet_db:del_host(Ip(First)), ok = inet_db:add_host(Ip(Second), [Host]) end) || H <- [A, element(1, Pair)]],
    found(A, Talk, Second ++ ":"),
    lost(Tcp, Gone).

%% No address at all for two seconds, on either side. A sender that has filled its window waits for a probe time-out (RFC 9002, section
%% 6.2), which doubles: for at most as long again as it has waited.
address_is_gone_for_a_while(Config) ->
    Net = ?config(net, Config),
    Address = fun(Side) -> [?NET:host(Net, Side), "/24 dev eth"] end,
    gone_for_a_while(Net, fun(Side) -> ["addr del ", Address(Side)] end, fun(Side) -> ["addr add ", Address(Side)] end).

interface_down_and_up(Config) ->
    gone_for_a_while(?config(net, Config), fun(_) -> "link set eth down" end, fun(_) -> "link set eth up" end).

gone_for_a_while(Net, Down, Up) ->
    {A, B} = nodes_in(Net, "quic"),
    {TcpA, TcpB} = on_tcp(nodes_in(Net, "inet_tcp")),
    Talk = connected(A, B),
    [begin
         Began = quic_dist_test_clock:now_ms(),
         "" = ?NET:ip(Net, Side, Down(Side)),
         timer:sleep(?GONE_MS),
         "" = ?NET:ip(Net, Side, Up(Side)),
         Lasted = quic_dist_test_clock:now_ms() - Began,
         timer:sleep(3000),
         ok = ?TALK:resumed(Talk),
         go_on(Talk, Lasted)
     end || Side <- [a, b]],
    Lost = [maps:with([packets_lost, packets_sent], ?LIB:connection(H, Other)) || {H, Other} <- Talk],
    ct:log("packets: ~p; on inet_tcp: ~p", [Lost, [?LIB:call(H, ?AGENT, node_events, []) || H <- [TcpA, TcpB]]]),
    ends_well(Talk).

%%% Two nodes that talk

args() -> ["-kernel", "net_ticktime", integer_to_list(?TICKTIME_S), "dist_auto_connect", "never"].

nodes_in(Net, Carrier) -> ?NET:start_nodes(Net, Carrier, args()).

connected(A, B) ->
    [begin
         ok = ?LIB:call(H, ?AGENT, watch_nodes, []),
         ok = ?LIB:call(H, ?AGENT, keep_log, [])
     end || H <- [A, B]],
    ?LIB:connect(A, B),
    ?TALK:start(A, B).

go_on(Talk) -> ?TALK:go_on(Talk, ?PAUSE_MS).

%% After so many milliseconds without any way, and a probe time-out that doubled meanwhile.
go_on(Talk, Lasted) -> ?TALK:go_on(Talk, 2 * Lasted + ?PAUSE_MS).

%% All that was said has arrived, nodes() is what it always was, and there is a next connection; nothing is left.
ends_well([{A, B}, _] = Talk) ->
    ct:log("messages, each way: ~w", [?TALK:finish(Talk)]),
    [[{nodeup, Other}] = ?LIB:call(H, ?AGENT, node_events, []) || {H, Other} <- [{A, ?LIB:node(B)}, {B, ?LIB:node(A)}]],
    ?TALK:again(Talk).

%% The same on the other carrier: nodes that talk in the same way.
on_tcp({A, B} = Pair) ->
    _ = connected(A, B),
    Pair.

%% They lose each other, by the ticks at the latest.
lost({A, B}, Since) ->
    [begin
         ?LIB:wait_until({lost, H}, fun() -> ?LIB:call(H, ?AGENT, nodedown_at, []) =/= none end, 3 * ?TICKTIME_S * 1000),
         {At, Reason} = ?LIB:call(H, ?AGENT, nodedown_at, []),
         ct:log("on inet_tcp, ~s: lost the other one after ~b ms: ~0p", [?LIB:node(H), At - Since, Reason])
     end || H <- [A, B]].

peer(H, Other) ->
    #{peer := Peer} = ?LIB:connection(H, Other),
    Peer.

%% A line that says so, with all these words.
has_line(H, Words) ->
    Lines = ?LIB:call(H, ?AGENT, log_lines, []),
    Found = [L || {notice, L} <- Lines, lists:all(fun(W) -> string:find(L, W) =/= nomatch end, Words)],
    Found =:= [] orelse ct:log("~s: ~0p", [?LIB:node(H), Found]),
    Found =/= [].
