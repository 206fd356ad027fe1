%% What comes from the network may be anything. Datagrams by strangers, and by the peer's own address, are dropped or refused; meanwhile
%% an established connection plays ping-pong and must not notice; afterwards nothing has grown, crashed, or filled the log.
%%
%% Peers that speak QUIC and then misbehave (no certificate, a wrong name, garbage on the control stream, a length prefix over the
%% limit, data on a stream that does not exist, a stall half-way through the distribution handshake) need a QUIC stack of their own:
%% the section "Peers that speak QUIC" below is for them, with the Rust program quic_dist_badpeer.
-module(bad_input_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([initial_maker/1, garbage/1, shaped_garbage/1, oversized/1, truncated/1, bit_flips/1, replayed/1, replayed_on_path/1,
         unknown_version/1, unknown_version_unanswered/1, wrong_alpn/1, bad_client_hello/1, half_open_flood/1,
         strangers/1, nodes_gone_bad/1, stalled_handshakes/1]).
%% run on the nodes
-export([ping_pong/2, pong/0]).

-define(LIB, quic_dist_test_lib).
-define(AGENT, quic_dist_test_agent).
-define(MIB, 1048576).
-define(LOOPBACK, {127, 0, 0, 1}).
-define(ALPN, <<"quic_dist/2">>).
-define(NO_APPLICATION_PROTOCOL, (16#100 + 120)).
-define(HANDSHAKE_TIMEOUT, 2000).
-define(MAX_HALF_OPEN, 64).
%% so many lines in the log are enough for any flood
-define(LOG_LIMIT, 100).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [initial_maker, garbage, shaped_garbage, oversized, truncated, bit_flips, replayed, replayed_on_path,
     unknown_version, unknown_version_unanswered, wrong_alpn, bad_client_hello, half_open_flood,
     strangers, nodes_gone_bad, stalled_handshakes].

init_per_suite(Config) ->
    _ = ?LIB:init_suite(Config),
    {ok, _} = application:ensure_all_started(crypto),
    Config.
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) ->
    ?LIB:init_case(Case, [{C, "it has no UDP port"} || C <- all() -- [initial_maker]], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% The tool

%% The example of RFC 9001, appendix A: the keys, and so what is protected by them, are right.
initial_maker(_Config) ->
    %% A.3: the server's Initial in answer to a client whose connection id was 8394c8f03e515708. It holds ACK and CRYPTO, no close.
    Server = binary:decode_hex(<<"cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a"
                                 "5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3"
                                 "dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84"
                                 "022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4"
                                 "2158407dd074ee">>),
    Example = #{dcid => binary:decode_hex(<<"8394c8f03e515708">>), scid => <<>>},
    no_close = quic_dist_test_initial:close_reason(Example, Server),
    Attempt = quic_dist_test_initial:new(),
    1200 = byte_size(quic_dist_test_initial:packet(Attempt, quic_dist_test_initial:client_hello(Attempt, [?ALPN]))).

%%% Datagrams

garbage(_Config) ->
    attacked(#{}, fun(#{send := Send}) ->
        [Send(rand:bytes(rand:uniform(1500))) || _ <- lists:seq(1, 5000)],
        [Send(<<>>) || _ <- lists:seq(1, 100)],
        [Send(binary:copy(<<Byte>>, Size)) || Byte <- lists:seq(0, 255), Size <- [1, 20, 1200]]
    end).

%% Garbage with the headers of every kind of packet, so that it gets further than the first byte.
shaped_garbage(_Config) ->
    attacked(#{}, fun(#{send := Send}) ->
        [begin
             Attempt = #{dcid := Dcid, scid := Scid} = quic_dist_test_initial:new(),
             Rest = rand:bytes(rand:uniform(1300)),
             %% Initial, 0-RTT, Handshake, Retry, with version 1 and with 0; lengths of connection ids that fit and that do not
             Send(<<1:1, 1:1, (I rem 4):2, (rand:uniform(16) - 1):4, (I rem 3):32, 16, Dcid/binary, 8, Scid/binary, Rest/binary>>),
             Send(<<1:1, 1:1, (I rem 4):2, 3:4, 1:32, (rand:uniform(256) - 1), Rest/binary>>),
             %% a short header
             Send(<<0:1, 1:1, (rand:uniform(64) - 1):6, Dcid/binary, Rest/binary>>),
             %% an Initial whose keys are right and whose frames are nonsense
             Send(quic_dist_test_initial:packet(Attempt, rand:bytes(rand:uniform(900))))
         end || I <- lists:seq(1, 500)]
    end).

oversized(_Config) ->
    attacked(#{}, fun(#{send := Send}) ->
        [Send(rand:bytes(Size)) || Size <- [1473, 9000, 16000, 16001, 16384, 32768, 65000, 65507], _ <- lists:seq(1, 100)],
        [begin
             Attempt = quic_dist_test_initial:new(),
             Initial = quic_dist_test_initial:packet(Attempt, quic_dist_test_initial:client_hello(Attempt, [<<"no">>])),
             Send(<<Initial/binary, (rand:bytes(65507 - byte_size(Initial)))/binary>>)
         end || _ <- lists:seq(1, 50)]
    end).

truncated(_Config) ->
    attacked(#{}, fun(#{send := Send, captured := Captured}) ->
        [Send(binary:part(D, 0, Size)) || D <- lists:sublist(Captured, 12), Size <- sizes(byte_size(D))]
    end).

sizes(Full) -> lists:usort(lists:seq(0, min(Full - 1, 60)) ++ lists:seq(0, Full - 1, 37) ++ [Full - 1]).

bit_flips(_Config) ->
    attacked(#{}, fun(#{send := Send, inject := Inject, captured := Captured}) ->
        [begin
             At = rand:uniform(bit_size(D)) - 1,
             <<Head:At/bitstring, Bit:1, Tail/bitstring>> = D,
             Flipped = <<Head/bitstring, (1 - Bit):1, Tail/bitstring>>,
             %% from a stranger, and from the peer's own address
             Send(Flipped),
             Inject(Flipped)
         end || D <- lists:sublist(Captured, 30), _ <- lists:seq(1, 60)]
    end).

%% The whole handshake of the peer and what it said since, by somebody else.
replayed(_Config) ->
    attacked(#{}, fun(#{send := Send, captured := Captured}) ->
        [Send(D) || _ <- lists:seq(1, 20), D <- Captured]
    end).

%% The same, on the very path of the connection, forwards and backwards: no message may be delivered twice, which ping-pong checks.
replayed_on_path(_Config) ->
    attacked(#{}, fun(#{inject := Inject, captured := Captured}) ->
        [Inject(D) || _ <- lists:seq(1, 10), D <- Captured ++ lists:reverse(Captured)]
    end).

%%% Versions and handshakes

%% A datagram of an unknown version, long enough to be a first one, is answered with the versions there are.
unknown_version(_Config) ->
    attacked(#{}, fun(#{send := Send, recv := Recv}) ->
        [begin
             #{dcid := Dcid, scid := Scid} = Attempt = quic_dist_test_initial:new(),
             Send(quic_dist_test_initial:version_probe(Attempt, 1200)),
             <<1:1, _:7, 0:32, 8, Scid:8/binary, 16, Dcid:16/binary, Versions/binary>> = Recv(),
             true = lists:member(1, [V || <<V:32>> <= Versions])
         end || _ <- lists:seq(1, 20)]
    end).

%% Nobody is answered who did not send as much: that would be an amplifier. Nor is version negotiation itself: that would be a loop.
unknown_version_unanswered(_Config) ->
    attacked(#{}, fun(#{send := Send, recv := Recv, silence := Silence}) ->
        [begin
             #{dcid := To, scid := From} = Short = quic_dist_test_initial:new(),
             Send(quic_dist_test_initial:version_probe(Short, Size)),
             Send(<<1:1, 1:1, 0:6, 0:32, 16, To/binary, 8, From/binary, 1:32, 0:(1200 * 8)>>)
         end || Size <- [40, 200, 1199]],
        %% Datagrams are taken in their order: the first answer is that to the last one, which is long enough.
        #{dcid := Dcid, scid := Scid} = Attempt = quic_dist_test_initial:new(),
        Send(quic_dist_test_initial:version_probe(Attempt, 1200)),
        <<1:1, _:7, 0:32, 8, Scid:8/binary, 16, Dcid:16/binary, _/binary>> = Recv(),
        Silence(500)
    end).

wrong_alpn(_Config) ->
    attacked(#{}, fun(#{send := Send, recv := Recv}) ->
        [begin
             Attempt = quic_dist_test_initial:new(),
             Send(quic_dist_test_initial:packet(Attempt, quic_dist_test_initial:client_hello(Attempt, Alpn))),
             {close, ?NO_APPLICATION_PROTOCOL, _} = quic_dist_test_initial:close_reason(Attempt, Recv())
         end || Alpn <- [[<<"h3">>], [<<"h3">>, <<"quic_dist/0">>, <<"quic_dist/22">>], [binary:copy(<<"x">>, 255)]]]
    end).

bad_client_hello(_Config) ->
    attacked(#{}, fun(#{send := Send}) ->
        [begin
             Attempt = quic_dist_test_initial:new(),
             Hello = quic_dist_test_initial:client_hello(Attempt, [?ALPN]),
             Bad = case I rem 4 of
                 0 -> binary:part(Hello, 0, rand:uniform(byte_size(Hello)));
                 1 -> <<Hello/binary, Hello/binary>>;
                 2 -> At = rand:uniform(byte_size(Hello)) - 1, <<H:At/binary, B, T/binary>> = Hello, <<H/binary, (B bxor 255), T/binary>>;
                 %% transport parameters that name another connection id
                 3 -> quic_dist_test_initial:client_hello(quic_dist_test_initial:new(), [?ALPN])
             end,
             Send(quic_dist_test_initial:packet(Attempt, Bad))
         end || I <- lists:seq(1, 400)]
    end).

%% Thousands begin a handshake, rightly, and do not go on: the table of half-open connections has its limit, a third node still gets in,
%% and after the handshake's time they are gone.
half_open_flood(_Config) ->
    attacked(#{third_node => true}, fun(#{send := Send, b := B}) ->
        Most = lists:max([begin
            Attempt = quic_dist_test_initial:new(),
            Send(quic_dist_test_initial:packet(Attempt, quic_dist_test_initial:client_hello(Attempt, [?ALPN]))),
            case I rem 50 of 0 -> half_open(B); _ -> 0 end
        end || I <- lists:seq(1, 2000)]),
        ct:log("at most ~b half open", [Most]),
        true = Most > 0 andalso Most =< ?MAX_HALF_OPEN
    end).

%%% Peers that speak QUIC

%% They do not know the cookie, or are no nodes: TLS refuses them, with one line each.
strangers(_Config) ->
    Refused = fun(L) -> string:find(L, "refused a connection") =/= nomatch end,
    Lines = misbehave([{"no-certificate", [], "alert 116"},
                       {"wrong-cookie", [], "alert 48"},
                       {"wrong-alpn", [], "alert 120"}],
                      fun(Lines) -> length(lists:filter(Refused, Lines)) >= 3 end),
    3 = length(lists:filter(Refused, Lines)).

%% They know the cookie, get in, and break a rule: that ends their own connection, with a reason for both sides.
nodes_gone_bad(_Config) ->
    Broken = "application 0x1 ",
    Told = [{"long-prefix", [], Broken ++ "a packet of 2147483647 bytes on stream 4, 1073741824 is the limit"},
            {"wrong-stream", ["--stream", "20"], Broken ++ "data on stream 20, which was not announced"},
            {"fin-inside", [], Broken ++ "stream 4 ended inside a packet"},
            {"reset-stream", [], Broken ++ "stream 4 was reset"}],
    Said = fun(Text, Lines) -> lists:any(fun(L) -> string:find(L, string:prefix(Text, Broken)) =/= nomatch end, Lines) end,
    misbehave(Told ++ [{"wrong-stream", ["--stream", "68"], "no-credit 68"}],
              fun(Lines) -> lists:all(fun({_, _, Text}) -> Said(Text, Lines) end, Told) end).

%% They stop half-way. Each is closed when its time is over, which is the handshake's, or dist_util's.
stalled_handshakes(_Config) ->
    Stalled = fun(L) -> string:find(L, "the peer stalled") =/= nomatch end,
    Lines = misbehave([{"stall-handshake", [], "transport 0xc"},
                       {"silent", [], "application 0x0"},
                       {"half-name", [], "finished"},
                       {"garbage-control", [], "finished"}],
                      fun(Lines) -> length(lists:filter(Stalled, Lines)) >= 2 end),
    2 = length(lists:filter(Stalled, Lines)).

%% Runs quic_dist_badpeer in each of these ways at the same time, twice (the first time loads code, and that makes atoms); waits until the
%% node's log says what it has to, each time; gives its lines of the second time.
misbehave(Ways, Logged) ->
    Program = quic_dist_holdproxy:build("quic_dist_badpeer"),
    Case = self(),
    Once = fun(Name, #{port := Port, b := B}) ->
        Known = length(?LIB:call(B, ?AGENT, log_lines, [])),
        Peers = [{open_port({spawn_executable, Program},
                            [{args, [Mode, "127.0.0.1", integer_to_list(Port), ?LIB:cookie(),
                                     "--name", Name ++ integer_to_list(I) ++ "@127.0.0.1" | Args]},
                             exit_status, {line, 1000}]), Mode, Told}
                 || {I, {Mode, Args, Told}} <- lists:zip(lists:seq(1, length(Ways)), Ways)],
        [receive
             {Peer, {data, {eol, Line}}} -> {Mode, true} = {Mode, lists:prefix(Told, Line) orelse Line}
         after 30000 -> error({deadline, Mode})
         end || {Peer, Mode, Told} <- Peers],
        Lines = fun() -> [lists:flatten(io_lib:format("~ts", [Text])) || {_, Text} <- lists:nthtail(Known, ?LIB:call(B, ?AGENT, log_lines, []))] end,
        ?LIB:wait_until({logged, Ways}, fun() -> Logged(Lines()) end, 10000),
        %% and whatever else comes
        timer:sleep(500),
        Lines()
    end,
    attacked(#{warm_up => fun(Attacker) -> Once("warm", Attacker) end}, fun(Attacker) ->
        Case ! {lines, Once("bad", Attacker)}
    end),
    receive {lines, Lines} -> ct:log("~p", [Lines]), Lines after 0 -> error(no_lines) end.

%%% The attack

%% A plays ping-pong with B, through a relay that keeps what A said, while Attack does what it does to B's port.
attacked(Options, Attack) ->
    %% With streams of the application's, those that were not announced would be such.
    Limits = ["-quic_dist", "handshake_timeout", integer_to_list(?HANDSHAKE_TIMEOUT), "-quic_dist", "max_half_open", integer_to_list(?MAX_HALF_OPEN),
              "-quic_dist", "user_streams", "0"],
    [A, B] = ?LIB:start_all([#{tag => "a", args => ["-epmd_module", "quic_dist_test_epmd"]}, #{tag => "attacked", args => Limits}]),
    {NodeA, NodeB} = {?LIB:node(A), ?LIB:node(B)},
    Alive = hd(string:lexemes(atom_to_list(NodeB), "@")),
    {port, Port, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, ?LOOPBACK]),
    {Relay, RelayPort} = quic_dist_relay:start(#{to => Port, capture => 200}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => RelayPort}]),
    [ok = ?LIB:call(H, ?AGENT, watch_nodes, []) || H <- [A, B]],
    ?LIB:connect(A, B),
    ok = ?LIB:call(B, ?AGENT, keep_log, []),
    %% the first line loads code, too, hence atoms
    ok = ?LIB:call(B, logger, notice, ["~ts ~tp", ["the attack begins", [{on, #{port => Port}}]]]),
    Player = ?LIB:run(A, fun() -> spawn(?MODULE, ping_pong, [NodeB, 0]) end),
    ?LIB:wait_until(warm, fun() -> rounds(A, Player) > 300 end, 20000),
    {ok, Socket} = gen_udp:open(0, [binary, {ip, ?LOOPBACK}, {active, true}, {recbuf, 4194304}]),
    Attacker = #{port => Port, a => A, b => B, captured => quic_dist_relay:captured(Relay),
                 send => fun(D) -> send(Socket, Port, D) end,
                 inject => fun(D) -> ok = quic_dist_relay:inject(Relay, D) end,
                 recv => fun() -> recv(Socket, Port) end,
                 silence => fun(Ms) -> receive {udp, Socket, _, _, D} -> error({answered, D}) after Ms -> ok end end},
    try
        %% measuring loads code, too, and so does being attacked for the first time
        (maps:get(warm_up, Options, fun(_) -> ok end))(Attacker),
        _ = counts(B),
        Before = counts(B),
        Rounds = rounds(A, Player),
        Attack(Attacker),
        %% a newcomer gets in, during the attack's aftermath as at any time
        _ = maps:get(third_node, Options, false) andalso newcomer(B),
        ?LIB:wait_until(ping_pong_goes_on, fun() -> rounds(A, Player) > Rounds + 300 end, 20000),
        unharmed(A, B, [NodeA, NodeB], Before)
    after
        gen_udp:close(Socket),
        quic_dist_relay:stop(Relay)
    end.

%% A raw socket outruns any receiver: without a pause the kernel, not the node, would drop most of it.
send(Socket, Port, Datagram) ->
    Count = case get(sent) of undefined -> 0; N -> N end,
    put(sent, Count + 1),
    Count rem 20 =:= 0 andalso timer:sleep(1),
    ok = gen_udp:send(Socket, ?LOOPBACK, Port, Datagram).

recv(Socket, Port) ->
    receive {udp, Socket, _, Port, Datagram} -> Datagram after 5000 -> error({deadline, answer}) end.

newcomer(B) ->
    New = ?LIB:start(#{tag => "newcomer"}),
    ?LIB:connect(New, B),
    0 = ?LIB:stop(New).

unharmed(A, B, [NodeA, NodeB], Before) ->
    %% everything half-open has had its time
    ?LIB:wait_until(half_open_gone, fun() -> half_open(B) =:= 0 end, ?HANDSHAKE_TIMEOUT + 15000),
    ?LIB:wait_until({nothing_left, Before}, fun() ->
        Now = counts(B),
        lists:all(fun(K) -> maps:get(K, Now) =< maps:get(K, Before) end, [threads, fds, processes, ports, connections])
    end, 10000),
    Now = counts(B),
    Lines = ?LIB:call(B, ?AGENT, log_lines, []),
    ct:log("before ~p~nafter ~p~n~b log lines:~n~p", [Before, Now, length(Lines), lists:sublist(Lines, 20)]),
    true = maps:get(rss, Now) - maps:get(rss, Before) < 16 * ?MIB,
    true = maps:get(atoms, Now) - maps:get(atoms, Before) < 50,
    true = length(Lines) < ?LOG_LIMIT,
    [] = [Line || {Level, _} = Line <- Lines, logger:compare_levels(Level, error) =:= gt],
    nomatch = re:run([?LIB:output(A), ?LIB:output(B)], "panicked|CRASH REPORT|Segmentation", []),
    [[] = [E || {nodedown, N, _} = E <- ?LIB:call(H, ?AGENT, node_events, []), lists:member(N, [NodeA, NodeB])] || H <- [A, B]],
    ok.

counts(B) ->
    Inside = ?LIB:run(B, fun() ->
        [erlang:garbage_collect(P) || P <- processes()],
        #{processes => erlang:system_info(process_count), ports => erlang:system_info(port_count), atoms => erlang:system_info(atom_count)}
    end),
    #{endpoints := Endpoints} = ?LIB:call(B, quic_dist, info, []),
    Inside#{threads => ?LIB:threads(B), fds => ?LIB:fds(B), rss => ?LIB:rss(B), connections => lists:sum([C || #{connections := C} <- Endpoints])}.

half_open(B) ->
    #{endpoints := Endpoints} = ?LIB:call(B, quic_dist, info, []),
    lists:sum([H || #{half_open := H} <- Endpoints]).

rounds(A, Player) ->
    ?LIB:run(A, fun() ->
        Player ! {rounds, self()},
        receive {rounds, N} -> N after 10000 -> error({ping_pong_stands_still, process_info(Player)}) end
    end).

%%% Run on the nodes

%% A round is a number out and the same number back, once; any other message is one too many. The rounds are counted.
-spec ping_pong(node(), non_neg_integer()) -> no_return().
ping_pong(Node, Count) -> ping_pong(spawn(Node, ?MODULE, pong, []), Node, Count).

ping_pong(Pong, Node, Count) ->
    Pong ! {ping, self(), Count},
    receive
        {pong, Count} -> ok;
        {pong, Other} -> exit({expected, Count, got, Other})
    after 8000 -> exit({no_answer, Node, Count})
    end,
    receive {rounds, From} -> From ! {rounds, Count} after 0 -> ok end,
    Count rem 10 =:= 0 andalso timer:sleep(1),
    ping_pong(Pong, Node, Count + 1).

-spec pong() -> no_return().
pong() -> pong(0).

pong(Expected) ->
    receive {ping, From, Expected} -> From ! {pong, Expected};
            {ping, From, Other} -> From ! {pong, {twice_or_lost, Expected, Other}}
    end,
    pong(Expected + 1).
