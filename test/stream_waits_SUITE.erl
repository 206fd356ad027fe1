%% Who waits on a stream of the application's own, between real nodes: what a recv gives while the stream changes its mode or its owner, and what is
%% left of those who die while they wait.
-module(stream_waits_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([given_while_received/1, exact/1, waiting_reader_dies/1, owner_dies_waiting/1, owner_dies_with_connection/1, small_sends_to_nobody/1]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).
-define(MIB, 1048576).

suite() -> [{timetrap, {seconds, 90}}].

all() -> [given_while_received, exact, waiting_reader_dies, owner_dies_waiting, owner_dies_with_connection, small_sends_to_nobody].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%% As ?S:wait_for/1, but it says what it was that did not come.
soon(What, Fun) -> ?LIB:wait_until(What, Fun, 20000).

%% A passive stream on which Peer sends Data, again and again, until it is reset.
endless(Node, Peer, Data) ->
    {ok, S} = quic_dist:open_stream(Node, [{active, false}]),
    ok = quic_dist:send(S, <<"x">>),
    {_, T, _} = ?S:told(Peer, 20000),
    ok = ?S:call(Peer, fun() ->
        _ = spawn_link(fun Again() -> case quic_dist:send(T, Data) of ok -> Again(); {error, _} -> ok end end),
        ok
    end),
    S.

%% That is what Data, again and again, has there.
same(Data, Offset, Got) ->
    From = Offset rem byte_size(Data),
    Have = min(byte_size(Got), byte_size(Data) - From),
    true = binary:part(Data, From, Have) =:= binary:part(Got, 0, Have),
    case Got of
        <<_:Have/binary>> -> ok;
        <<_:Have/binary, Rest/binary>> -> same(Data, Offset + Have, Rest)
    end.

%% While it is given away, to the same process, somebody else receives: every recv gives what comes next.
given_while_received(_Config) ->
    ?S:on_pair(fun(B) ->
        Data = rand:bytes(?MIB),
        S = {_, _, Id} = endless(B, ?S:acceptor(B, []), Data),
        {ok, Conn, _} = quic_dist_nodes:connection(B),
        Self = self(),
        Reader = spawn_link(fun() -> Self ! {self(), receive_all(S, Data, 0, 100)} end),
        Deadline = erlang:monotonic_time(millisecond) + 60000,
        Give = fun Again(Times) ->
            ok = quic_dist_nif:stream_give(Conn, Id),
            ok = quic_dist_nif:stream_given(Conn, Id, Self),
            receive {Reader, ok} -> Times
            after 0 ->
                case erlang:monotonic_time(millisecond) < Deadline of
                    true -> Again(Times + 1);
                    false -> error({reader_hangs, process_info(Reader, current_stacktrace), Times})
                end
            end
        end,
        true = Give(0) > 0,
        ok = quic_dist:reset_stream(S)
    end).

receive_all(_, _, _, 0) -> ok;
receive_all(S, Data, Offset, Times) ->
    {ok, Got} = quic_dist:recv(S, Times rem 3),
    true = Times rem 3 =:= 0 orelse byte_size(Got) =:= Times rem 3,
    same(Data, Offset, Got),
    receive_all(S, Data, Offset + byte_size(Got), Times - 1).

%% However much is on its way for somebody else, a recv gives as much as it asks for.
exact(_Config) ->
    ?S:on_pair(fun(B) ->
        Data = rand:bytes(?MIB),
        S = endless(B, ?S:acceptor(B, []), Data),
        Flush = fun Again(Offset, Wait) ->
            receive {quic_dist_stream, S, {data, Got, false}} -> same(Data, Offset, Got), Again(Offset + byte_size(Got), 0)
            after Wait -> Offset
            end
        end,
        Step = fun(N, Offset) ->
            ok = quic_dist:setopts(S, [{active, true}]),
            After = Flush(Offset, infinity),
            spin(N rem 100),
            ok = quic_dist:setopts(S, [{active, false}]),
            {ok, <<Four:4/binary>>} = quic_dist:recv(S, 4),
            So = Flush(After, 0),
            same(Data, So, Four),
            %% nobody waits for these any more, but they may be on their way
            Asked = 1 + N rem 200,
            Then = case quic_dist:recv(S, Asked, 0) of
                {ok, Some} -> Asked = byte_size(Some), same(Data, So + 4, Some), So + 4 + Asked;
                {error, timeout} -> So + 4
            end,
            {ok, <<Many:50/binary>>} = quic_dist:recv(S, 50),
            same(Data, Then, Many),
            Then + 50
        end,
        true = lists:foldl(Step, 0, lists:seq(1, 1000)) > 1000,
        ok = quic_dist:reset_stream(S)
    end).

%% For some microseconds, so that a delivery is in all stages of its way.
spin(Microseconds) -> spin_until(erlang:monotonic_time(microsecond) + Microseconds).

spin_until(Time) -> erlang:monotonic_time(microsecond) < Time andalso spin_until(Time).

%% Who is killed in recv is not in the way of others, and takes nothing along.
waiting_reader_dies(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, S} = quic_dist:open_stream(B, [{active, false}]),
        ok = quic_dist:send(S, <<"x">>),
        {_, T, _} = ?S:told(Peer, 20000),
        [begin
             Reader = spawn(fun() -> keep_on(fun() -> quic_dist:recv(S, Length) end) end),
             ok = soon(waits, fun() -> quic_dist:recv(S, 1, 0) =:= {error, ealready} end),
             ok = ?S:call(Peer, fun() -> quic_dist:send(T, Sent) end),
             exit(Reader, kill),
             ok = soon(nobody_waits, fun() -> quic_dist:recv(S, 1000, 50) =:= {error, timeout} end),
             ok = quic_dist:setopts(S, [{active, false}]),
             Sent =:= <<>> orelse ({ok, Sent} = quic_dist:recv(S, byte_size(Sent), 20000))
         end || {Length, Sent} <- [{0, <<>>}, {10, <<>>}, {10, <<"1234">>}]],
        ?S:drained()
    end).

%% Wherever its owner waits, a stream ends with it, and both sides are rid of it.
owner_dies_waiting(_Config) ->
    ?S:on_pair(fun(B) ->
        Me = node(),
        Peer = ?S:acceptor(B, [{active, false}]),
        File = filename:join("/tmp", "quic_dist_" ++ os:getpid() ++ "_dies"),
        Chunk = binary:copy(<<0>>, 300000),
        Fill = fun Again(S) -> case quic_dist:send(S, Chunk) of ok -> Again(S); {error, _} = Error -> exit(Error) end end,
        Waits = [fun(S) -> quic_dist:recv(S, 0) end,
                 fun(S) -> quic_dist:recv(S, 1000000) end,
                 fun(S) -> Fill(S) end,
                 fun(S) -> quic_dist:recv_file(S, File, []) end,
                 fun(_) -> receive never -> ok end end],
        %% the opener
        [begin
             Self = self(),
             Opener = spawn(fun() ->
                 {ok, S} = quic_dist:open_stream(B, [{active, false}]),
                 ok = quic_dist:send(S, <<"x">>),
                 Self ! {self(), S},
                 keep_on(fun() -> Wait(S) end)
             end),
             S = receive {Opener, Opened} -> Opened after 20000 -> error(deadline) end,
             {_, T, passive} = ?S:told(Peer, 20000),
             ok = soon(waits, fun() -> waits_for(S, Opener, Index) end),
             exit(Opener, kill),
             {_, T, {reset, 0}} = ?S:told(Peer, 20000)
         end || {Index, Wait} <- lists:enumerate(Waits)],
        %% the acceptor, of passive streams
        exit(Peer, kill),
        ok = ?S:wait_dead(Peer),
        [begin
             Acceptor = ?S:acceptor(B, [{active, false}]),
             {ok, S} = quic_dist:open_stream(B, [{active, false}]),
             ok = quic_dist:send(S, <<"x">>),
             {_, T, passive} = ?S:told(Acceptor, 20000),
             Self = self(),
             Acceptor ! {run, Self, make_ref(), fun() -> Self ! {self(), quic_dist:recv(T, 1)}, keep_on(fun() -> Wait(T) end) end},
             receive {Acceptor, {ok, <<"x">>}} -> ok after 20000 -> error(deadline) end,
             ok = soon(waits, fun() -> erpc:call(B, fun() -> waits_for(T, Acceptor, Index) end) end),
             exit(Acceptor, kill),
             receive {quic_dist_stream, S, {reset, 0}} -> ok after 20000 -> error(deadline) end
         end || {Index, Wait} <- lists:enumerate(Waits)],
        ok = soon(nothing_here, fun() -> quic_dist:list_streams(B) =:= [] end),
        ok = soon(nothing_there, fun() -> erpc:call(B, quic_dist, list_streams, [Me]) =:= [] end),
        _ = file:delete(File),
        ?S:drained()
    end).

%% Those who look whether it waits are in its way for a moment.
keep_on(Wait) ->
    case Wait() of
        {error, ealready} -> keep_on(Wait);
        Result -> Result
    end.

%% The stream's owner stands still, and has got where it is to stand.
waits_for(S, Pid, Index) ->
    {status, waiting} =:= process_info(Pid, status) andalso
        case Index of
            3 -> {ok, [{queued, Queued}]} = quic_dist:getopts(S, [queued]), Queued >= 262144;
            5 -> true;
            _ -> quic_dist:recv(S, 1, 0) =:= {error, ealready}
        end.

%% Owners that die as the connection ends: those who live are told once, nobody hangs, and the next connection has nothing of it.
owner_dies_with_connection(_Config) ->
    {A, _, _, B} = ?S:pair(["-kernel", "dist_auto_connect", "never"]),
    ?LIB:run(A, fun() ->
        ok = net_kernel:monitor_nodes(true),
        [begin
             _ = ?S:acceptor(B, [{active, false}]),
             Self = self(),
             Owners = [spawn(fun() ->
                 {ok, S} = quic_dist:open_stream(B, [{active, false}]),
                 ok = quic_dist:send(S, <<"x">>),
                 Self ! ready,
                 Result = quic_dist:recv(S, 1),
                 receive {quic_dist_stream, S, End} -> Self ! {self(), Result, End, process_info(self(), messages)} end
             end) || _ <- lists:seq(1, 40)],
             [receive ready -> ok end || _ <- Owners],
             {Doomed, Lucky} = lists:split(20, Owners),
             _ = spawn(fun() -> [begin erlang:yield(), exit(P, kill) end || P <- Doomed] end),
             true = erlang:disconnect_node(B),
             receive {nodedown, B} -> ok end,
             [receive {P, {error, _}, {reset, {connection, _}}, {messages, []}} -> ok after 20000 -> error({not_told, process_info(P)}) end || P <- Lucky],
             [ok = ?S:wait_dead(P) || P <- Doomed],
             _ = flush(Doomed),
             [] = quic_dist:list_streams(B),
             soon(connected, fun() -> net_kernel:connect_node(B) =:= true andalso (catch erpc:call(B, erlang, node, [])) =:= B end),
             receive {nodeup, B} -> ok end,
             [] = quic_dist:list_streams(B)
         end || _ <- lists:seq(1, 5)],
        %% it can be used
        Peer = ?S:acceptor(B, []),
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<"x">>),
        {_, _, {data, <<"x">>, false}} = ?S:told(Peer, 20000),
        ok
    end, 80000).

%% Some were told before they died.
flush(Pids) ->
    receive
        {Pid, _, _, _} when is_pid(Pid) -> true = lists:member(Pid, Pids), flush(Pids)
    after 0 -> ok
    end.

%% As stream_flow_SUITE:stopped_reader, a byte at a time, and with many who die while they wait for room.
small_sends_to_nobody(_Config) ->
    {A, B, _, NodeB} = ?S:pair(),
    _ = ?LIB:run(A, fun() -> ?S:acceptor(NodeB, [{active, false}]) end),
    Sent = ?S:grows_less({A, B}, 24 * ?MIB, fun() ->
        {ok, S} = quic_dist:open_stream(NodeB),
        N = fill(S, 0, 0),
        [begin
             Writers = [spawn_monitor(fun() -> quic_dist:send(S, <<"x">>) end) || _ <- lists:seq(1, 1000)],
             %% or has sent it, if the other node stood still before
             [ok = ?S:wait_for(fun() -> lists:member(process_info(P, status), [{status, waiting}, undefined]) end) || {P, _} <- Writers],
             [exit(P, kill) || {P, _} <- Writers],
             [receive {'DOWN', R, _, _, _} -> ok end || {_, R} <- Writers]
         end || _ <- lists:seq(1, 20)],
        N
    end),
    true = Sent =< 2 * ?MIB.

%% Until nothing more is taken; once is not enough, for the other node may stand still.
fill(_, Sent, 5) -> Sent;
fill(S, Sent, Full) ->
    case quic_dist:send(S, <<1>>, [nosuspend]) of
        ok -> fill(S, Sent + 1, 0);
        {error, busy} -> timer:sleep(200), fill(S, Sent, Full + 1)
    end.
