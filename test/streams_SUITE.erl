%% Streams of the application's own between real nodes: the API, and how streams and connections end. Who owns what: stream_owners_SUITE.
-module(streams_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, groups/0, suite/0, init_per_group/2, end_per_group/2, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([both_ways/1, half_closes/1, unidirectional/1, resets/1, modes/1, receiving/1, connection_ends/1, node_dies/1, many_processes/1,
         wrong_arguments/1]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [both_ways, half_closes, unidirectional, resets, modes, receiving, connection_ends, node_dies, many_processes, wrong_arguments,
     {group, bad_network}].

groups() -> [{bad_network, [], [unidirectional, resets, modes, receiving]}].

init_per_group(bad_network, Config) -> [{path, ?S:bad_network()} | Config].
end_per_group(_Group, _Config) -> ok.

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% The API

both_ways(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, {quic_dist_stream, B, 20} = S} = quic_dist:open_stream(B),
        [#{ref := S, node := B, stream_id := 20, priority := 128, recv_fin := false, send_fin := false, owner := Self,
           direction := bidi, active := true}] = quic_dist:list_streams(B),
        Self = self(),
        true = quic_dist:list_streams() =:= quic_dist:list_streams(B),
        ok = quic_dist:send(S, <<"there">>),
        {quic_dist_stream, {quic_dist_stream, Me, 20} = T, {data, <<"there">>, false}} = ?S:told(Peer, 20000),
        Me = node(),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, ["b", [<<"ac">>, $k]]) end),
        receive {quic_dist_stream, S, {data, <<"back">>, false}} -> ok end,
        ok = quic_dist:close_stream(S),
        {quic_dist_stream, T, {data, <<>>, true}} = ?S:told(Peer, 20000),
        {error, closed} = quic_dist:send(S, <<"late">>),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<"last">>, true) end),
        receive {quic_dist_stream, S, {data, <<"last">>, true}} -> ok end,
        receive {quic_dist_stream, S, closed} -> ok end,
        {quic_dist_stream, T, closed} = ?S:told(Peer, 20000),
        [] = quic_dist:list_streams(B),
        {error, unknown_stream} = quic_dist:send(S, <<"late">>),
        {error, unknown_stream} = quic_dist:getopts(S, [active]),
        %% the other side's own numbers
        ok = quic_dist:accept_streams(B),
        {ok, {_, _, 17} = U} = ?S:call(Peer, fun() -> quic_dist:open_stream(Me, [{priority, 16}]) end),
        ok = ?S:call(Peer, fun() -> quic_dist:send(U, <<"hello">>, true) end),
        receive {quic_dist_stream, {quic_dist_stream, B, 17}, {data, <<"hello">>, true}} -> ok end,
        ok = quic_dist:stop_accepting(B),
        ?S:drained()
    end).

%%% Ends

half_closes(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<>>),
        ok = quic_dist:send(S, []),
        ok = quic_dist:send(S, <<>>, true),
        {_, T, {data, <<>>, true}} = ?S:told(Peer, 20000),
        %% the other direction goes on
        [ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<I:32>>) end) || I <- lists:seq(1, 100)],
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<>>, true) end),
        Numbers = ?S:numbers(1, 100),
        {fin, Numbers} = ?S:collect(S),
        receive {quic_dist_stream, S, closed} -> ok end,
        {_, T, closed} = ?S:told(Peer, 20000),
        {error, unknown_stream} = quic_dist:send(S, <<"late">>),
        ?S:drained()
    end).

unidirectional(Config) ->
    ?S:on_pair(Config, fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, {_, _, 2} = S} = quic_dist:open_stream(B, [{direction, uni}]),
        [#{direction := uni, recv_fin := true}] = quic_dist:list_streams(B),
        ok = quic_dist:send(S, <<"one">>),
        {_, {_, _, 2} = T, {data, <<"one">>, false}} = ?S:told(Peer, 20000),
        {error, closed} = ?S:call(Peer, fun() -> quic_dist:send(T, <<"x">>) end),
        ok = quic_dist:send(S, <<"two">>, true),
        receive {quic_dist_stream, S, closed} -> ok end,
        {_, T, {data, <<"two">>, true}} = ?S:told(Peer, 20000),
        {_, T, closed} = ?S:told(Peer, 20000),
        %% the reader cancels
        {ok, U} = quic_dist:open_stream(B, [{direction, uni}]),
        ok = quic_dist:send(U, <<"x">>),
        {_, V, {data, _, _}} = ?S:told(Peer, 20000),
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(V, 5) end),
        {_, V, {reset, 5}} = ?S:told(Peer, 20000),
        receive {quic_dist_stream, U, {reset, 5}} -> ok after 20000 -> error(deadline) end,
        %% the other node's, whose first is 3; its end without data, and read by hand
        ok = quic_dist:accept_streams(B, [{active, false}]),
        Me = node(),
        Uni = fun(Fun) -> ?S:call(Peer, fun() -> {ok, R} = quic_dist:open_stream(Me, [{direction, uni}]), ok = Fun(R), R end) end,
        {_, _, 3} = W = Uni(fun(R) -> quic_dist:close_stream(R) end),
        {_, W, closed} = ?S:told(Peer, 20000),
        Three = {quic_dist_stream, B, 3},
        receive {quic_dist_stream, Three, passive} -> ok after 20000 -> error(deadline) end,
        {error, closed} = quic_dist:recv(Three, 0, 20000),
        receive {quic_dist_stream, Three, closed} -> ok after 20000 -> error(deadline) end,
        {_, _, 7} = X = Uni(fun(R) -> quic_dist:send(R, <<"data">>, true) end),
        {_, X, closed} = ?S:told(Peer, 20000),
        Seven = {quic_dist_stream, B, 7},
        receive {quic_dist_stream, Seven, passive} -> ok after 20000 -> error(deadline) end,
        {ok, <<"da">>} = quic_dist:recv(Seven, 2),
        {ok, <<"ta">>} = quic_dist:recv(Seven, 1000),
        receive {quic_dist_stream, Seven, closed} -> ok after 20000 -> error(deadline) end,
        ?S:drained()
    end).

resets(Config) ->
    Lossy = ?config(path, Config) =/= undefined,
    ?S:on_pair(Config, fun(B) ->
        Peer = ?S:acceptor(B, []),
        [begin
             {ok, S} = quic_dist:open_stream(B),
             ok = quic_dist:send(S, <<"x">>, Fin),
             {_, T, {data, <<"x">>, Fin}} = ?S:told(Peer, 20000),
             case By of
                 opener -> ok = quic_dist:reset_stream(S, Code);
                 acceptor -> ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T, Code) end)
             end,
             receive {quic_dist_stream, S, {reset, Code}} -> ok after 20000 -> error({By, Code, Fin}) end,
             {_, T, {reset, Code}} = ?S:told(Peer, 20000),
             {error, unknown_stream} = quic_dist:send(S, <<"late">>)
         end || Code <- [0, 1, 63, 64, 16#100, 16#3fff, 16#4000, 16#3fffffff, 16#40000000, 16#3fffffffffffffff],
                By <- [opener, acceptor], Fin <- [false, true]],
        [] = quic_dist:list_streams(B),
        %% never used: the other side hears nothing, unless the word of that was lost at first
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:reset_stream(S),
        receive {quic_dist_stream, S, {reset, 0}} -> ok end,
        T = {quic_dist_stream, node(), element(3, S)},
        receive
            {Peer, {quic_dist_stream, T, {reset, 0}}} when Lossy -> ok;
            Unexpected -> error(Unexpected)
        after 200 -> ok
        end
    end).

%%% Modes

modes(Config) ->
    ?S:on_pair(Config, fun(B) ->
        Echo = ?S:acceptor(B, [], echo),
        {ok, S} = quic_dist:open_stream(B, [{active, false}]),
        Next = fun(Expected) ->
            ok = quic_dist:send(S, Expected),
            receive {quic_dist_stream, S, {data, Expected, false}} -> ok after 20000 -> error({deadline, Expected}) end
        end,
        Silent = fun() -> receive {quic_dist_stream, S, _} = M -> error(M) after 100 -> ok end end,
        ok = quic_dist:send(S, <<"held">>),
        Silent(),
        ok = quic_dist:setopts(S, [{active, once}]),
        receive {quic_dist_stream, S, {data, <<"held">>, false}} -> ok end,
        {ok, [{active, false}]} = quic_dist:getopts(S, [active]),
        ok = quic_dist:setopts(S, [{active, 2}]),
        Next(<<"1">>),
        {ok, [{active, 1}]} = quic_dist:getopts(S, [active]),
        ok = quic_dist:setopts(S, [{active, 1}]),
        Next(<<"2">>),
        Next(<<"3">>),
        receive {quic_dist_stream, S, passive} -> ok end,
        ok = quic_dist:setopts(S, [{active, 5}]),
        ok = quic_dist:setopts(S, [{active, -5}]),
        receive {quic_dist_stream, S, passive} -> ok end,
        ok = quic_dist:setopts(S, [{active, 32767}]),
        {error, einval} = quic_dist:setopts(S, [{active, 1}]),
        ok = quic_dist:setopts(S, [{active, true}, {priority, 20}]),
        [Next(<<I>>) || I <- lists:seq(1, 50)],
        ok = quic_dist:setopts(S, [{active, false}]),
        ok = quic_dist:send(S, <<"end">>, true),
        Silent(),
        {ok, <<"end">>} = quic_dist:recv(S, 0),
        {error, closed} = recv_end(S),
        receive {quic_dist_stream, S, closed} -> ok after 20000 -> error(deadline) end,
        true = is_process_alive_there(Echo),
        ?S:drained()
    end).

%% The end may come with the last data or after it.
recv_end(S) ->
    case quic_dist:recv(S, 0, 20000) of
        {error, unknown_stream} -> {error, closed};
        Other -> Other
    end.

is_process_alive_there(Pid) -> erpc:call(node(Pid), erlang, is_process_alive, [Pid]).

receiving(Config) ->
    ?S:on_pair(Config, fun(B) ->
        Peer = ?S:acceptor(B, [{active, false}]),
        {ok, S} = quic_dist:open_stream(B, [{active, false}]),
        {error, timeout} = quic_dist:recv(S, 0, 50),
        {error, timeout} = quic_dist:recv(S, 0, 0),
        {error, einval} = quic_dist:recv(S, -1, 0),
        Data = rand:bytes(3000000),
        %% three times the window: it has to be read to be sent
        Self = self(),
        Sender = spawn_link(fun() ->
            ok = quic_dist:send(S, Data),
            receive finish -> ok = quic_dist:send(S, <<>>, true), Self ! sent after 20000 -> error(deadline) end
        end),
        {_, T, passive} = ?S:told(Peer, 20000),
        Got = ?S:call(Peer, fun() ->
            {ok, One} = quic_dist:recv(T, 1),
            {ok, Many} = quic_dist:recv(T, 1000000, 20000),
            1000000 = byte_size(Many),
            {error, timeout} = quic_dist:recv(T, 60000000, 100),
            {ok, Some} = quic_dist:recv(T, 0),
            Sender ! finish,
            Rest = case quic_dist:recv(T, 60000000) of
                {ok, More} -> {error, closed} = quic_dist:recv(T, 1), More;
                {error, closed} -> <<>>
            end,
            <<One/binary, Many/binary, Some/binary, Rest/binary>>
        end),
        true = is_binary(Got) orelse error(Got),
        true = Got =:= Data,
        receive sent -> ok end,
        %% one at a time
        Waiting = spawn(fun() -> Self ! {waited, quic_dist:recv(S, 10)} end),
        ok = ?S:wait_for(fun() -> process_info(Waiting, status) =:= {status, waiting} end),
        timer:sleep(50),
        {error, ealready} = quic_dist:recv(S, 1, 100),
        {error, einval} = quic_dist:setopts(S, [{active, true}]),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<"0123456789">>) end),
        receive {waited, {ok, <<"0123456789">>}} -> ok after 20000 -> error(deadline) end,
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T, 3) end),
        receive {quic_dist_stream, S, {reset, 3}} -> ok after 20000 -> error(deadline) end,
        {error, unknown_stream} = quic_dist:recv(S, 1),
        {_, T, {reset, 3}} = ?S:told(Peer, 20000),
        ?S:drained()
    end).

%%% The connection's end

connection_ends(_Config) ->
    {A, _, _, B} = ?S:pair(["-quic_dist", "user_stream_window", "65536", "-kernel", "dist_auto_connect", "never"]),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(B, [{active, false}]),
        ok = net_kernel:monitor_nodes(true),
        {ok, S} = quic_dist:open_stream(B),
        {ok, P} = quic_dist:open_stream(B, [{active, false}]),
        Self = self(),
        _ = spawn(fun() -> Self ! {sender, send_until(S)} end),
        _ = spawn(fun() -> Self ! {reader, quic_dist:recv(P, 1)} end),
        ok = ?S:wait_for(fun() -> [Q || #{queued := Q, ref := R} <- quic_dist:list_streams(B), R =:= S, Q > 200000] =/= [] end),
        timer:sleep(300),
        true = erlang:disconnect_node(B),
        receive {nodedown, B} -> ok end,
        [receive {quic_dist_stream, Ref, {reset, {connection, _}}} -> ok after 20000 -> error({deadline, Ref}) end || Ref <- [S, P]],
        receive {sender, {error, _}} -> ok after 20000 -> error(sender) end,
        receive {reader, {error, _}} -> ok after 20000 -> error(reader) end,
        %% who asks before the endpoint's server has heard of it is told `closed'
        [true = lists:member(Refused, [{error, not_connected}, {error, closed}]) || Refused <- [quic_dist:open_stream(B), quic_dist:send(S, <<"x">>)]],
        [] = quic_dist:list_streams(),
        ok = ?S:wait_for(fun() -> quic_dist:get_controller(B) =:= {error, not_connected} end),
        {error, not_connected} = quic_dist:open_stream(B),
        {error, not_connected} = quic_dist:send(S, <<"x">>),
        %% it is the same node, but another connection
        true = net_kernel:connect_node(B),
        {ok, _} = quic_dist:open_stream(B),
        receive {quic_dist_stream, _, _} = M -> error(M) after 200 -> ok end,
        _ = Peer,
        %% who has connected can use it at once
        [begin
             true = erlang:disconnect_node(B),
             receive {nodedown, B} -> ok end,
             true = net_kernel:connect_node(B),
             {ok, _} = quic_dist:open_stream(B)
         end || _ <- lists:seq(1, 50)],
        ok
    end, 60000).

send_until(S) ->
    case quic_dist:send(S, binary:copy(<<0>>, 100000)) of
        ok -> send_until(S);
        Error -> Error
    end.

%% A connection on which nothing is said finds it out with the next tick.
node_dies(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-kernel", "net_ticktime", "8"]} || T <- ["a", "b"]]),
    ?LIB:connect(A, B),
    NodeB = ?LIB:node(B),
    Streams = 100,
    Owner = ?LIB:run(A, fun() ->
        _ = ?S:acceptor(NodeB, []),
        Self = self(),
        Pid = spawn(fun() ->
            Refs = [begin {ok, S} = quic_dist:open_stream(NodeB), ok = quic_dist:send(S, <<"x">>), S end || _ <- lists:seq(1, Streams)],
            Self ! ready,
            Ends = [receive {quic_dist_stream, S, {reset, {connection, _}}} -> ok end || S <- Refs],
            receive {result, From} -> From ! {Ends, process_info(self(), messages)} end
        end),
        receive ready -> Pid end
    end),
    %% until nothing is on its way that the system would refuse
    timer:sleep(1000),
    ?LIB:kill(B),
    {Ends, {messages, []}} = ?LIB:run(A, fun() -> Owner ! {result, self()}, receive R -> R after 40000 -> error(deadline) end end, 50000),
    Streams = length(Ends).

%% Streams of different processes do not wait for each other, nor for the controller.
many_processes(_Config) ->
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        _ = [?S:acceptor(NodeB, [], echo) || _ <- lists:seq(1, 4)],
        {ok, Controller} = quic_dist:get_controller(NodeB),
        true = erlang:suspend_process(Controller),
        Data = rand:bytes(20000),
        Pids = [spawn_monitor(fun() ->
            {ok, S} = quic_dist:open_stream(NodeB),
            ok = quic_dist:send(S, Data, true),
            {fin, Data} = ?S:collect(S)
        end) || _ <- lists:seq(1, 900)],
        [receive {'DOWN', Ref, process, Pid, Reason} -> normal = Reason after 30000 -> error(deadline) end || {Pid, Ref} <- Pids],
        true = erlang:resume_process(Controller),
        pong = net_adm:ping(NodeB)
    end, 60000).

wrong_arguments(_Config) ->
    ?S:on_pair(fun(B) ->
        [{error, {bad_option, Name, Value}} = quic_dist:open_stream(B, [{Name, Value}])
         || {Name, Value} <- [{priority, 16.0}, {priority, high}, {direction, both}, {active, 40000}, {active, yes},
                              {unknown, 1}]],
        {error, {bad_option, nonsense, undefined}} = quic_dist:open_stream(B, [nonsense]),
        {ok, S} = quic_dist:open_stream(B),
        {error, {bad_option, priority, low}} = quic_dist:set_priority(S, low),
        [{error, {bad_option, code, Code}} = quic_dist:reset_stream(S, Code) || Code <- [-1, 1 bsl 62, x]],
        {error, {bad_option, timeout, -1}} = quic_dist:send(S, <<>>, [{timeout, -1}]),
        {ok, Controller} = quic_dist:get_controller(B),
        [begin
             {error, {bad_option, owner, Owner}} = quic_dist_controller:open_user_stream(Controller, Owner),
             {error, {bad_option, owner, Owner}} = quic_dist_controller:accept_user_streams(Controller, Owner)
         end || Owner <- [not_a_pid, make_ref(), erpc:call(B, erlang, self, [])]],
        %% all of the options or none of them
        {error, {bad_option, direction, uni}} = quic_dist:setopts(S, [{active, false}, {direction, uni}]),
        ok = quic_dist:setopts(S, [{active, 32767}]),
        {error, einval} = quic_dist:setopts(S, [{priority, 20}, {active, 1}]),
        {ok, [{active, 32767}, {priority, 128}]} = quic_dist:getopts(S, [active, priority]),
        ok = quic_dist:setopts(S, [{active, false}]),
        {error, einval} = quic_dist:recv(S, 67108865, 0),
        %% longer than a process can wait
        Forever = 1 bsl 40,
        ok = quic_dist:send(S, <<>>, [{timeout, Forever}]),
        %% who looks whether it waits may be in its way
        {Waiting, Monitor} = spawn_monitor(fun Again() ->
            case quic_dist:recv(S, 1, Forever) of {error, ealready} -> Again(); Other -> exit(Other) end
        end),
        ok = ?S:wait_for(fun() -> quic_dist:recv(S, 1, 0) =:= {error, ealready} end),
        exit(Waiting, stop),
        receive {'DOWN', Monitor, _, _, stop} -> ok end,
        {error, not_connected} = quic_dist:open_stream('nobody@127.0.0.1'),
        {error, not_connected} = quic_dist:open_stream(node()),
        {error, not_connected} = quic_dist:accept_streams('nobody@127.0.0.1'),
        [] = quic_dist:list_streams('nobody@127.0.0.1'),
        [try F(), error(should_have_failed) catch error:badarg -> ok end
         || F <- [fun() -> quic_dist:send(S, not_iodata) end, fun() -> quic_dist:send(S, [300]) end]],
        ?S:drained()
    end).
