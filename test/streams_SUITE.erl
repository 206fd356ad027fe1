%% Streams of the application's own between real nodes: the API, who owns what, and how streams end.
-module(streams_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([both_ways/1, of_the_controller/1, documented_program/1, acceptors_take_turns/1, refused/1, half_closes/1, unidirectional/1,
         resets/1, modes/1, receiving/1, owners_only/1, moves_while_data_arrives/1, mailbox_follows/1, owner_dies/1,
         dies_while_giving/1, cut_while_used/1, connection_ends/1, node_dies/1, many_processes/1, wrong_arguments/1]).
%% run on the nodes
-export([relay_race/3, pool/2, answer/1]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).
-define(OWNER_DOWN, 0).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [both_ways, of_the_controller, documented_program, acceptors_take_turns, refused, half_closes, unidirectional, resets, modes,
     receiving, owners_only, moves_while_data_arrives, mailbox_follows, owner_dies, dies_while_giving, cut_while_used, connection_ends, node_dies,
     many_processes, wrong_arguments].

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
        {quic_dist_stream, {quic_dist_stream, Me, 20} = T, {data, <<"there">>, false}} = ?S:told(Peer, 5000),
        Me = node(),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, ["b", [<<"ac">>, $k]]) end),
        receive {quic_dist_stream, S, {data, <<"back">>, false}} -> ok end,
        ok = quic_dist:close_stream(S),
        {quic_dist_stream, T, {data, <<>>, true}} = ?S:told(Peer, 5000),
        {error, closed} = quic_dist:send(S, <<"late">>),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<"last">>, true) end),
        receive {quic_dist_stream, S, {data, <<"last">>, true}} -> ok end,
        receive {quic_dist_stream, S, closed} -> ok end,
        {quic_dist_stream, T, closed} = ?S:told(Peer, 5000),
        [] = quic_dist:list_streams(B),
        {error, unknown_stream} = quic_dist:send(S, <<"late">>),
        %% the other side's own numbers
        ok = quic_dist:accept_streams(B),
        {ok, {_, _, 17} = U} = ?S:call(Peer, fun() -> quic_dist:open_stream(Me, [{priority, 16}]) end),
        ok = ?S:call(Peer, fun() -> quic_dist:send(U, <<"hello">>, true) end),
        receive {quic_dist_stream, {quic_dist_stream, B, 17}, {data, <<"hello">>, true}} -> ok end,
        ok = quic_dist:stop_accepting(B),
        ?S:drained()
    end).

%% The functions of the specification, by controller and number.
of_the_controller(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, C} = quic_dist:get_controller(B),
        {B, C} = lists:keyfind(B, 1, erlang:system_info(dist_ctrl)),
        {ok, 20} = quic_dist_controller:open_user_stream(C, self()),
        {ok, 24} = quic_dist_controller:open_user_stream(C, self(), [{priority, 200}]),
        [#{stream_id := 20}, #{stream_id := 24, priority := 200}] = quic_dist_controller:list_user_streams(C),
        ok = quic_dist_controller:send_user_data(C, 20, <<"x">>, false),
        {quic_dist_stream, _, {data, <<"x">>, false}} = ?S:told(Peer, 5000),
        ok = quic_dist_controller:close_user_stream(C, 20),
        {quic_dist_stream, _, {data, <<>>, true}} = ?S:told(Peer, 5000),
        ok = quic_dist_controller:reset_user_stream(C, 24, 77),
        receive {quic_dist_stream, {_, B, 24}, {reset, 77}} -> ok end,
        ok = quic_dist_controller:reset_user_stream(C, 20),
        receive {quic_dist_stream, {_, B, 20}, {reset, 0}} -> ok end,
        {quic_dist_stream, _, {reset, 0}} = ?S:told(Peer, 5000),
        Other = spawn(fun() -> receive stop -> ok end end),
        {ok, Id} = quic_dist_controller:open_user_stream(C, Other),
        {error, not_owner} = quic_dist_controller:controlling_process(C, Id, self()),
        ok = quic_dist_controller:accept_user_streams(C, Other),
        ok = quic_dist_controller:stop_accepting_streams(C),
        {error, unknown_stream} = quic_dist_controller:send_user_data(C, 999999, <<>>, false),
        Gone = spawn(fun() -> ok end),
        {error, not_connected} = quic_dist_controller:open_user_stream(Gone, self()),
        [] = quic_dist_controller:list_user_streams(Gone),
        ok = quic_dist_controller:stop_accepting_streams(Gone),
        ok
    end).

%% What erlang_quic's documentation has: its functions, its streams' maps, a request with its answer, and a pool of acceptors, as they
%% stand there.
documented_program(_Config) ->
    ?S:on_pair(fun(B) ->
        [true = erlang:function_exported(M, F, Arity)
         || {M, Functions} <- [{quic_dist, [{open_stream, 1}, {open_stream, 2}, {send, 2}, {send, 3}, {close_stream, 1},
                                            {reset_stream, 1}, {reset_stream, 2}, {accept_streams, 1}, {stop_accepting, 1},
                                            {controlling_process, 2}, {list_streams, 0}, {list_streams, 1}, {get_controller, 1}]},
                               {quic_dist_controller, [{open_user_stream, 2}, {open_user_stream, 3}, {send_user_data, 4},
                                                       {close_user_stream, 2}, {reset_user_stream, 2}, {reset_user_stream, 3},
                                                       {accept_user_streams, 2}, {stop_accepting_streams, 1},
                                                       {controlling_process, 3}, {list_user_streams, 1}]}],
            {F, Arity} <- Functions],
        Pool = [?S:on(B, ?MODULE, pool, [self(), node()]) || _ <- lists:seq(1, 3)],
        [begin
             {ok, Stream} = quic_dist:open_stream(B, [{priority, 64}]),
             ok = quic_dist:send(Stream, <<"GET ">>),
             Self = self(),
             [#{ref := Stream, node := B, stream_id := _, owner := Self, priority := 64, recv_fin := false, send_fin := false}] =
                 quic_dist:list_streams(),
             ok = quic_dist:send(Stream, <<"/data">>, true),
             receive
                 {quic_dist_stream, Stream, {data, Response, true}} -> <<"you said: GET /data">> = Response
             after 5000 -> error(deadline)
             end,
             receive {quic_dist_stream, Stream, closed} -> ok after 5000 -> error(deadline) end
         end || _ <- lists:seq(1, 30)],
        %% any of them, all through
        [true = erpc:call(B, erlang, is_process_alive, [Pid]) || Pid <- Pool],
        ?S:drained()
    end).

pool(To, Node) ->
    ok = quic_dist:accept_streams(Node),
    To ! {self(), ready},
    acceptor_loop(Node, #{}).

acceptor_loop(Node, Requests) ->
    ok = quic_dist:accept_streams(Node),
    receive
        {quic_dist_stream, Stream, {data, Data, Fin}} ->
            acceptor_loop(Node, handle_request(Stream, Data, Fin, Requests));
        {quic_dist_stream, _, closed} ->
            acceptor_loop(Node, Requests)
    end.

handle_request(Stream, Data, false, Requests) ->
    Requests#{Stream => <<(maps:get(Stream, Requests, <<>>))/binary, Data/binary>>};
handle_request(Stream, Data, true, Requests) ->
    #{Stream := Request} = Whole = handle_request(Stream, Data, false, Requests),
    ok = quic_dist:send(Stream, [<<"you said: ">>, Request], true),
    maps:remove(Stream, Whole).

acceptors_take_turns(_Config) ->
    ?S:on_pair(fun(B) ->
        Peers = [?S:acceptor(B, []) || _ <- lists:seq(1, 3)],
        Streams = [begin
                       {ok, S} = quic_dist:open_stream(B),
                       ok = quic_dist:send(S, <<"x">>),
                       S
                   end || _ <- lists:seq(1, 30)],
        Got = [receive {P, {quic_dist_stream, {_, _, Id}, {data, _, _}}} -> {P, Id} after 5000 -> error(deadline) end || _ <- Streams],
        [10 = length([Id || {P, Id} <- Got, P =:= Peer]) || Peer <- Peers],
        true = lists:sort([Id || {_, Id} <- Got]) =:= [Id || {_, _, Id} <- Streams],
        %% registered twice is registered once; one that stops keeps what it has
        [First | _] = Peers,
        Me = node(),
        ok = ?S:call(First, fun() -> quic_dist:accept_streams(Me) end),
        ok = ?S:call(First, fun() -> quic_dist:stop_accepting(Me) end),
        10 = length(?S:call(First, fun() -> [x || #{owner := O} <- quic_dist:list_streams(Me), O =:= self()] end)),
        [begin {ok, S} = quic_dist:open_stream(B), ok = quic_dist:send(S, <<"y">>) end || _ <- lists:seq(1, 10)],
        More = [receive {P, {quic_dist_stream, _, {data, <<"y">>, _}}} -> P after 5000 -> error(deadline) end || _ <- lists:seq(1, 10)],
        [0, 5, 5] = [length([P || P <- More, P =:= Peer]) || Peer <- Peers],
        ok
    end).

refused(_Config) ->
    ?S:on_pair(fun(B) ->
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, rand:bytes(100000)),
        receive {quic_dist_stream, S, {reset, 16#100}} -> ok after 5000 -> error(deadline) end,
        {ok, U} = quic_dist:open_stream(B, [{direction, uni}]),
        ok = quic_dist:send(U, rand:bytes(100000)),
        receive {quic_dist_stream, U, {reset, 16#100}} -> ok after 5000 -> error(deadline) end,
        %% an acceptor that is gone is none
        Peer = ?S:acceptor(B, []),
        exit(Peer, kill),
        ok = wait_dead(Peer),
        {ok, T} = quic_dist:open_stream(B),
        ok = quic_dist:send(T, <<"x">>, true),
        receive {quic_dist_stream, T, {reset, 16#100}} -> ok after 5000 -> error(deadline) end,
        ?S:drained()
    end).

wait_dead(Pid) ->
    Ref = erlang:monitor(process, Pid),
    receive {'DOWN', Ref, _, _, _} -> ok after 5000 -> error(deadline) end.

%%% Ends

half_closes(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<>>),
        ok = quic_dist:send(S, []),
        ok = quic_dist:send(S, <<>>, true),
        {_, T, {data, <<>>, true}} = ?S:told(Peer, 5000),
        %% the other direction goes on
        [ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<I:32>>) end) || I <- lists:seq(1, 100)],
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<>>, true) end),
        Numbers = ?S:numbers(1, 100),
        {fin, Numbers} = ?S:collect(S),
        receive {quic_dist_stream, S, closed} -> ok end,
        {_, T, closed} = ?S:told(Peer, 5000),
        {error, unknown_stream} = quic_dist:send(S, <<"late">>),
        ?S:drained()
    end).

unidirectional(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, {_, _, 2} = S} = quic_dist:open_stream(B, [{direction, uni}]),
        [#{direction := uni, recv_fin := true}] = quic_dist:list_streams(B),
        ok = quic_dist:send(S, <<"one">>),
        {_, {_, _, 2} = T, {data, <<"one">>, false}} = ?S:told(Peer, 5000),
        {error, closed} = ?S:call(Peer, fun() -> quic_dist:send(T, <<"x">>) end),
        ok = quic_dist:send(S, <<"two">>, true),
        receive {quic_dist_stream, S, closed} -> ok end,
        {_, T, {data, <<"two">>, true}} = ?S:told(Peer, 5000),
        {_, T, closed} = ?S:told(Peer, 5000),
        %% the reader cancels
        {ok, U} = quic_dist:open_stream(B, [{direction, uni}]),
        ok = quic_dist:send(U, <<"x">>),
        {_, V, {data, _, _}} = ?S:told(Peer, 5000),
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(V, 5) end),
        {_, V, {reset, 5}} = ?S:told(Peer, 5000),
        receive {quic_dist_stream, U, {reset, 5}} -> ok after 5000 -> error(deadline) end,
        %% the other node's, whose first is 3; its end without data, and read by hand
        ok = quic_dist:accept_streams(B, [{active, false}]),
        Me = node(),
        Uni = fun(Fun) -> ?S:call(Peer, fun() -> {ok, R} = quic_dist:open_stream(Me, [{direction, uni}]), ok = Fun(R), R end) end,
        {_, _, 3} = W = Uni(fun(R) -> quic_dist:close_stream(R) end),
        {_, W, closed} = ?S:told(Peer, 5000),
        Three = {quic_dist_stream, B, 3},
        receive {quic_dist_stream, Three, passive} -> ok after 5000 -> error(deadline) end,
        {error, closed} = quic_dist:recv(Three, 0, 5000),
        receive {quic_dist_stream, Three, closed} -> ok after 5000 -> error(deadline) end,
        {_, _, 7} = X = Uni(fun(R) -> quic_dist:send(R, <<"data">>, true) end),
        {_, X, closed} = ?S:told(Peer, 5000),
        Seven = {quic_dist_stream, B, 7},
        receive {quic_dist_stream, Seven, passive} -> ok after 5000 -> error(deadline) end,
        {ok, <<"da">>} = quic_dist:recv(Seven, 2),
        {ok, <<"ta">>} = quic_dist:recv(Seven, 1000),
        receive {quic_dist_stream, Seven, closed} -> ok after 5000 -> error(deadline) end,
        ?S:drained()
    end).

resets(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        [begin
             {ok, S} = quic_dist:open_stream(B),
             ok = quic_dist:send(S, <<"x">>, Fin),
             {_, T, {data, <<"x">>, Fin}} = ?S:told(Peer, 5000),
             case By of
                 opener -> ok = quic_dist:reset_stream(S, Code);
                 acceptor -> ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T, Code) end)
             end,
             receive {quic_dist_stream, S, {reset, Code}} -> ok after 5000 -> error({By, Code, Fin}) end,
             {_, T, {reset, Code}} = ?S:told(Peer, 5000),
             {error, unknown_stream} = quic_dist:send(S, <<"late">>)
         end || Code <- [0, 1, 63, 64, 16#100, 16#3fff, 16#4000, 16#3fffffff, 16#40000000, 16#3fffffffffffffff],
                By <- [opener, acceptor], Fin <- [false, true]],
        [] = quic_dist:list_streams(B),
        %% never used: the other side hears nothing
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:reset_stream(S),
        receive {quic_dist_stream, S, {reset, 0}} -> ok end,
        receive Unexpected -> error(Unexpected) after 200 -> ok end
    end).

%%% Modes

modes(_Config) ->
    ?S:on_pair(fun(B) ->
        Echo = ?S:acceptor(B, [], echo),
        {ok, S} = quic_dist:open_stream(B, [{active, false}]),
        Next = fun(Expected) ->
            ok = quic_dist:send(S, Expected),
            receive {quic_dist_stream, S, {data, Expected, false}} -> ok after 5000 -> error({deadline, Expected}) end
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
        receive {quic_dist_stream, S, closed} -> ok after 5000 -> error(deadline) end,
        true = is_process_alive_there(Echo),
        ?S:drained()
    end).

%% The end may come with the last data or after it.
recv_end(S) ->
    case quic_dist:recv(S, 0, 5000) of
        {error, unknown_stream} -> {error, closed};
        Other -> Other
    end.

is_process_alive_there(Pid) -> erpc:call(node(Pid), erlang, is_process_alive, [Pid]).

receiving(_Config) ->
    ?S:on_pair(fun(B) ->
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
            receive finish -> ok = quic_dist:send(S, <<>>, true), Self ! sent after 10000 -> error(deadline) end
        end),
        {_, T, passive} = ?S:told(Peer, 5000),
        Got = ?S:call(Peer, fun() ->
            {ok, One} = quic_dist:recv(T, 1),
            {ok, Many} = quic_dist:recv(T, 1000000, 5000),
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
        ok = wait_for(fun() -> process_info(Waiting, status) =:= {status, waiting} end),
        timer:sleep(50),
        {error, ealready} = quic_dist:recv(S, 1, 100),
        {error, einval} = quic_dist:setopts(S, [{active, true}]),
        ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<"0123456789">>) end),
        receive {waited, {ok, <<"0123456789">>}} -> ok after 5000 -> error(deadline) end,
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T, 3) end),
        receive {quic_dist_stream, S, {reset, 3}} -> ok after 5000 -> error(deadline) end,
        {error, unknown_stream} = quic_dist:recv(S, 1),
        {_, T, {reset, 3}} = ?S:told(Peer, 5000),
        ?S:drained()
    end).

wait_for(Fun) ->
    case Fun() of
        true -> ok;
        false -> timer:sleep(10), wait_for(Fun)
    end.

%%% Ownership

owners_only(_Config) ->
    ?S:on_pair(fun(B) ->
        Echo = ?S:acceptor(B, [], echo),
        {ok, S} = quic_dist:open_stream(B),
        Self = self(),
        %% anybody may send, nobody else may give it away
        _ = spawn(fun() -> Self ! {quic_dist:controlling_process(S, self()), quic_dist:send(S, <<"x">>)} end),
        receive {{error, not_owner}, ok} -> ok end,
        receive {quic_dist_stream, S, {data, <<"x">>, false}} -> ok end,
        ok = quic_dist:controlling_process(S, self()),
        {error, {bad_option, owner, Echo}} = quic_dist:controlling_process(S, Echo),
        Dead = spawn(fun() -> ok end),
        ok = wait_dead(Dead),
        ok = quic_dist:controlling_process(S, Dead),
        ok = wait_for(fun() -> quic_dist:controlling_process(S, self()) =:= {error, unknown_stream} end),
        [] = quic_dist:list_streams(B),
        ?S:drained()
    end).

%% The stream changes hands as fast as it can, while four million numbers arrive; each owner takes what it gets.
moves_while_data_arrives(_Config) ->
    ?S:on_pair(fun(B) ->
        Total = 4000000,
        Runners = 5,
        Self = self(),
        _ = spawn(B, ?MODULE, relay_race, [self(), node(), Runners]),
        receive ready -> ok end,
        {ok, S} = quic_dist:open_stream(B),
        _ = spawn_link(fun() ->
            [ok = quic_dist:send(S, ?S:numbers(I, 1000)) || I <- lists:seq(0, Total - 1, 1000)],
            ok = quic_dist:send(S, <<>>, true),
            Self ! sent
        end),
        {Got, Moves} = receive {raced, G, M} -> {G, M} after 60000 -> error(deadline) end,
        true = Moves > 100,
        true = Got =:= ?S:numbers(0, Total)
    end).

%% All runners append to one list, which travels with the stream: an order that any loss, doubling or overtaking would break.
relay_race(To, Node, Runners) ->
    ok = quic_dist:accept_streams(Node),
    To ! ready,
    Others = [spawn_link(fun() -> runner(To) end) || _ <- lists:seq(2, Runners)],
    {Stream, First} = receive {quic_dist_stream, S, {data, Data, false}} -> {S, Data} end,
    runner(To, Stream, [First], 0, Others).

runner(To) ->
    receive {baton, S, Acc, Moves, Others} -> runner(To, S, Acc, Moves, Others) end.

runner(To, S, Acc, Moves, Others) ->
    receive
        {quic_dist_stream, S, {data, Data, true}} ->
            To ! {raced, iolist_to_binary(lists:reverse([Data | Acc])), Moves},
            timer:sleep(infinity);
        {quic_dist_stream, S, {data, Data, false}} ->
            pass(To, S, [Data | Acc], Moves, Others)
    after 0 ->
        pass(To, S, Acc, Moves, Others)
    end.

pass(To, S, Acc, Moves, [Next | Rest]) ->
    %% whoever has the stream and whoever has the list must be the same
    ok = quic_dist:controlling_process(S, Next),
    Next ! {baton, S, Acc, Moves + 1, Rest ++ [self()]},
    runner(To).

mailbox_follows(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Self = self(),
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<"x">>),
        {_, T, _} = ?S:told(Peer, 5000),
        ok = ?S:call(Peer, fun() -> [ok = quic_dist:send(T, <<I:32>>) || I <- lists:seq(1, 1000)], quic_dist:send(T, <<>>, true) end),
        ok = quic_dist:close_stream(S),
        %% all of it, the end included, waits here
        ok = wait_for(fun() ->
            {messages, Messages} = process_info(self(), messages),
            lists:member({quic_dist_stream, S, closed}, Messages)
        end),
        {error, unknown_stream} = quic_dist:controlling_process(S, self()),
        {ok, U} = quic_dist:open_stream(B),
        ok = quic_dist:send(U, <<"x">>),
        V = {quic_dist_stream, node(), element(3, U)},
        receive {Peer, {_, V, {data, _, _}}} -> ok after 5000 -> error(deadline) end,
        ok = ?S:call(Peer, fun() -> [ok = quic_dist:send(V, <<I:32>>) || I <- lists:seq(1, 1000)], ok end),
        timer:sleep(100),
        Heir = spawn_link(fun() -> receive {S2, go} -> Self ! {self(), ?S:collect(S2)} end end),
        ok = quic_dist:controlling_process(U, Heir),
        Heir ! {U, go},
        ok = ?S:call(Peer, fun() -> quic_dist:send(V, <<1001:32>>, true) end),
        Numbers = ?S:numbers(1, 1001),
        receive {Heir, {fin, Numbers}} -> ok after 5000 -> error(deadline) end,
        First = ?S:numbers(1, 1000),
        {fin, First} = ?S:collect(S),
        receive {quic_dist_stream, S, closed} -> ok end,
        ok
    end).

%% Opened, with data under way, half closed: whenever an owner dies, the other side is told.
owner_dies(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Self = self(),
        Steps = [fun(S) -> ok = quic_dist:send(S, <<"x">>) end,
                 fun(S) -> ok = quic_dist:send(S, rand:bytes(5000000)) end,
                 fun(S) -> ok = quic_dist:send(S, <<"x">>, true) end],
        [begin
             Opener = spawn(fun() -> {ok, S} = quic_dist:open_stream(B), Step(S), Self ! {opened, S}, receive stop -> ok end end),
             {_, _, Id} = receive {opened, O} -> O end,
             receive {Peer, {_, {_, _, Id}, {data, _, _}}} -> Opener ! stop after 5000 -> error(deadline) end,
             {reset, ?OWNER_DOWN} = last_told(Peer, Id),
             %% the other way round
             {ok, S} = quic_dist:open_stream(B),
             Step(S),
             Acceptor = ?S:call(Peer, fun() -> spawn(fun() -> receive stop -> ok end end) end),
             {_, T, {data, _, _}} = ?S:told(Peer, 5000),
             ok = ?S:call(Peer, fun() -> quic_dist:controlling_process(T, Acceptor) end),
             Acceptor ! stop,
             {{reset, ?OWNER_DOWN}, _} = ?S:collect(S)
         end || Step <- Steps],
        %% it dies with a thousand
        Many = spawn(fun() ->
            [begin {ok, S} = quic_dist:open_stream(B), ok = quic_dist:send(S, <<"x">>) end || _ <- lists:seq(1, 500)],
            Self ! all_open,
            receive stop -> ok end
        end),
        receive all_open -> ok after 10000 -> error(deadline) end,
        [receive {Peer, {_, _, {data, <<"x">>, false}}} -> ok after 5000 -> error(deadline) end || _ <- lists:seq(1, 500)],
        500 = length(quic_dist:list_streams(B)),
        exit(Many, kill),
        ok = wait_for(fun() -> quic_dist:list_streams(B) =:= [] end),
        500 = length([x || _ <- lists:seq(1, 500), ok =:= reset_told(Peer)]),
        Me = node(),
        [] = ?S:call(Peer, fun() -> quic_dist:list_streams(Me) end)
    end).

last_told(Peer, Id) ->
    case ?S:told(Peer, 10000) of
        {quic_dist_stream, {_, _, Id}, {data, _, _}} -> last_told(Peer, Id);
        {quic_dist_stream, {_, _, Id}, End} -> End;
        _Other -> last_told(Peer, Id)
    end.

reset_told(Peer) ->
    case ?S:told(Peer, 10000) of
        {quic_dist_stream, _, {reset, ?OWNER_DOWN}} -> ok;
        _ -> reset_told(Peer)
    end.

%% Between the steps of controlling_process/2 either of the two may die.
dies_while_giving(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Self = self(),
        {ok, Conn, _} = quic_dist_nodes:connection(B),
        Open = fun() ->
            {ok, {_, _, Id} = S} = quic_dist:open_stream(B),
            ok = quic_dist:send(S, <<"x">>),
            receive {Peer, {_, {_, _, Id}, {data, _, _}}} -> ok after 1000 -> ok end,
            ok = quic_dist_nif:stream_give(Conn, Id),
            {S, Id}
        end,
        %% the giver
        _ = spawn(fun() -> Self ! {given, Open()} end),
        {_, Id1} = receive {given, O} -> O end,
        {reset, ?OWNER_DOWN} = last_told(Peer, Id1),
        %% the taker
        {_, Id2} = Open(),
        Taker = spawn(fun() -> receive stop -> ok end end),
        exit(Taker, kill),
        ok = wait_dead(Taker),
        ok = quic_dist_nif:stream_given(Conn, Id2, Taker),
        {reset, ?OWNER_DOWN} = last_told(Peer, Id2),
        %% the stream: its end is for the new owner
        {S3, Id3} = Open(),
        T3 = {quic_dist_stream, node(), Id3},
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T3, 9) end),
        {reset, 9} = last_told(Peer, Id3),
        receive Unexpected -> error(Unexpected) after 100 -> ok end,
        Heir = spawn(fun() -> receive M -> Self ! {heir, M} end end),
        ok = quic_dist_nif:stream_given(Conn, Id3, Heir),
        receive {heir, {quic_dist_stream, S3, {reset, 9}}} -> ok after 5000 -> error(deadline) end,
        ?S:drained()
    end).

%% Cut a moment ago: whatever is asked then, the stream's owner is told its end, once, and nobody is told anything else.
cut_while_used(_Config) ->
    ?S:on_pair(fun(B) ->
        _ = ?S:acceptor(B, [{active, false}]),
        Heir = spawn_link(fun Loop() ->
            receive {want, From, S} -> receive {quic_dist_stream, S, End} -> From ! {told, S, End} end, Loop() end
        end),
        Uses = [fun(S) -> quic_dist:controlling_process(S, Heir) end,
                fun(S) -> quic_dist:controlling_process(S, self()) end,
                fun(S) -> quic_dist:recv(S, 1, 1000) end,
                fun(S) -> quic_dist:recv(S, 1, 0) end,
                fun(S) -> quic_dist:send(S, <<"x">>, [{timeout, 0}]) end,
                fun(S) -> quic_dist:setopts(S, [{active, once}, {priority, 17}]) end,
                fun(S) -> quic_dist:close_stream(S) end],
        [begin
             {ok, S} = quic_dist:open_stream(B, [{active, false}]),
             ok = quic_dist:send(S, <<"x">>),
             ok = quic_dist:reset_stream(S, 6),
             case Use(S) of
                 ok when Use =:= hd(Uses) ->
                     Heir ! {want, self(), S},
                     receive {told, S, {reset, 6}} -> ok after 5000 -> error({heir_not_told, S}) end;
                 _ ->
                     receive {quic_dist_stream, S, {reset, 6}} -> ok after 5000 -> error({not_told, Use, S}) end
             end
         end || Use <- Uses, _ <- lists:seq(1, 100)],
        [] = quic_dist:list_streams(B),
        timer:sleep(50),
        receive {Ref, _} = Stray when is_reference(Ref) -> error(Stray) after 0 -> ok end,
        receive {quic_dist_stream, _, _} = Twice -> error(Twice) after 0 -> ok end
    end).

%%% The connection's end

connection_ends(_Config) ->
    {A, _, _, B} = ?S:pair(["-quic_dist", "user_stream_window", "65536"]),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(B, [{active, false}]),
        ok = net_kernel:monitor_nodes(true),
        {ok, S} = quic_dist:open_stream(B),
        {ok, P} = quic_dist:open_stream(B, [{active, false}]),
        Self = self(),
        _ = spawn(fun() -> Self ! {sender, send_until(S)} end),
        _ = spawn(fun() -> Self ! {reader, quic_dist:recv(P, 1)} end),
        ok = wait_for(fun() -> [Q || #{queued := Q, ref := R} <- quic_dist:list_streams(B), R =:= S, Q > 200000] =/= [] end),
        timer:sleep(300),
        true = erlang:disconnect_node(B),
        receive {nodedown, B} -> ok end,
        [receive {quic_dist_stream, Ref, {reset, {connection, _}}} -> ok after 5000 -> error({deadline, Ref}) end || Ref <- [S, P]],
        receive {sender, {error, _}} -> ok after 5000 -> error(sender) end,
        receive {reader, {error, _}} -> ok after 5000 -> error(reader) end,
        {error, not_connected} = quic_dist:open_stream(B),
        {error, not_connected} = quic_dist:send(S, <<"x">>),
        [] = quic_dist:list_streams(),
        {error, not_connected} = quic_dist:get_controller(B),
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

node_dies(_Config) ->
    {A, B, _, NodeB} = ?S:pair(),
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

answer(X) -> X.

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
        {error, not_connected} = quic_dist:open_stream('nobody@127.0.0.1'),
        {error, not_connected} = quic_dist:open_stream(node()),
        {error, not_connected} = quic_dist:accept_streams('nobody@127.0.0.1'),
        [] = quic_dist:list_streams('nobody@127.0.0.1'),
        [try F(), error(should_have_failed) catch error:badarg -> ok end
         || F <- [fun() -> quic_dist:send(S, not_iodata) end, fun() -> quic_dist:send(S, [300]) end]],
        ?S:drained()
    end).
