%% Who owns the streams of the application's own, between real nodes: acceptors, streams that change hands, owners that die.
-module(stream_owners_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, groups/0, suite/0, init_per_group/2, end_per_group/2, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([acceptors_take_turns/1, refused/1, owners_only/1, moves_while_data_arrives/1, mailbox_follows/1, owner_dies/1,
         dies_while_giving/1, cut_while_used/1, order_in_a_contended_mailbox/1]).
%% run on the nodes
-export([relay_race/4]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).
-define(OWNER_DOWN, 0).
%% Numbers that each owner of a stream that changes hands sends.
-define(BACK, 10).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [acceptors_take_turns, refused, owners_only, moves_while_data_arrives, mailbox_follows, owner_dies, dies_while_giving,
     cut_while_used, order_in_a_contended_mailbox, {group, bad_network}].

groups() -> [{bad_network, [], [moves_while_data_arrives]}].

init_per_group(bad_network, Config) -> [{path, ?S:bad_network()} | Config].
end_per_group(_Group, _Config) -> ok.

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% Acceptors

acceptors_take_turns(_Config) ->
    ?S:on_pair(fun(B) ->
        Peers = [?S:acceptor(B, []) || _ <- lists:seq(1, 3)],
        Streams = [begin
                       {ok, S} = quic_dist:open_stream(B),
                       ok = quic_dist:send(S, <<"x">>),
                       S
                   end || _ <- lists:seq(1, 30)],
        Got = [receive {P, {quic_dist_stream, {_, _, Id}, {data, _, _}}} -> {P, Id} after 20000 -> error(deadline) end || _ <- Streams],
        [10 = length([Id || {P, Id} <- Got, P =:= Peer]) || Peer <- Peers],
        true = lists:sort([Id || {_, Id} <- Got]) =:= [Id || {_, _, Id} <- Streams],
        %% registered twice is registered once; one that stops keeps what it has
        [First | _] = Peers,
        Me = node(),
        ok = ?S:call(First, fun() -> quic_dist:accept_streams(Me) end),
        ok = ?S:call(First, fun() -> quic_dist:stop_accepting(Me) end),
        10 = length(?S:call(First, fun() -> [x || #{owner := O} <- quic_dist:list_streams(Me), O =:= self()] end)),
        [begin {ok, S} = quic_dist:open_stream(B), ok = quic_dist:send(S, <<"y">>) end || _ <- lists:seq(1, 10)],
        More = [receive {P, {quic_dist_stream, _, {data, <<"y">>, _}}} -> P after 20000 -> error(deadline) end || _ <- lists:seq(1, 10)],
        [0, 5, 5] = [length([P || P <- More, P =:= Peer]) || Peer <- Peers],
        ok
    end).

refused(_Config) ->
    ?S:on_pair(fun(B) ->
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, rand:bytes(100000)),
        receive {quic_dist_stream, S, {reset, 16#100}} -> ok after 20000 -> error(deadline) end,
        {ok, U} = quic_dist:open_stream(B, [{direction, uni}]),
        ok = quic_dist:send(U, rand:bytes(100000)),
        receive {quic_dist_stream, U, {reset, 16#100}} -> ok after 20000 -> error(deadline) end,
        %% an acceptor that is gone is none
        Peer = ?S:acceptor(B, []),
        exit(Peer, kill),
        ok = ?S:wait_dead(Peer),
        {ok, T} = quic_dist:open_stream(B),
        ok = quic_dist:send(T, <<"x">>, true),
        receive {quic_dist_stream, T, {reset, 16#100}} -> ok after 20000 -> error(deadline) end,
        ?S:drained()
    end).

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
        ok = ?S:wait_dead(Dead),
        ok = quic_dist:controlling_process(S, Dead),
        ok = ?S:wait_for(fun() -> quic_dist:controlling_process(S, self()) =:= {error, unknown_stream} end),
        [] = quic_dist:list_streams(B),
        ?S:drained()
    end).

%% The stream changes hands as fast as it can, while numbers arrive and others are sent back; each owner takes what it gets. They
%% arrive until it has moved often enough.
moves_while_data_arrives(Config) ->
    Total = case ?config(path, Config) of undefined -> 4000000; _ -> 400000 end,
    ?S:on_pair(Config, fun(B) ->
        Runners = 5,
        Self = self(),
        Sender = spawn_link(fun() ->
            receive {stream, S} -> Self ! {sent, send_numbers(S, 0, Total, false)} end
        end),
        _ = spawn(B, ?MODULE, relay_race, [self(), Sender, node(), Runners]),
        receive ready -> ok end,
        {ok, S} = quic_dist:open_stream(B),
        Sender ! {stream, S},
        {fin, Back} = ?S:collect(S, 60000),
        {Got, Moves} = receive {raced, G, M} -> {G, M} after 60000 -> error(deadline) end,
        Sent = receive {sent, N} -> N after 60000 -> error(deadline) end,
        true = Moves > 100,
        true = Got =:= ?S:numbers(0, Sent),
        %% each owner has sent as well
        true = Back =:= ?S:numbers(0, Moves * ?BACK)
    end).

send_numbers(S, From, Total, true) when From >= Total ->
    ok = quic_dist:send(S, <<>>, true),
    From;
send_numbers(S, From, Total, Enough) ->
    ok = quic_dist:send(S, ?S:numbers(From, 1000)),
    send_numbers(S, From + 1000, Total, Enough orelse receive enough -> true after 0 -> false end).

%% All runners append to one list, which travels with the stream: an order that any loss, doubling or overtaking would break.
relay_race(Result, Sender, Node, Runners) ->
    ok = quic_dist:accept_streams(Node),
    Result ! ready,
    To = {Result, Sender},
    Others = [spawn_link(fun() -> runner(To) end) || _ <- lists:seq(2, Runners)],
    {Stream, First} = receive {quic_dist_stream, S, {data, Data, false}} -> {S, Data} end,
    runner(To, Stream, [First], 0, Others).

runner(To) ->
    receive {baton, S, Acc, Moves, Others} -> runner(To, S, Acc, Moves, Others) end.

runner(To, S, Acc, Moves, Others) ->
    receive
        {quic_dist_stream, S, {data, Data, true}} ->
            ok = quic_dist:send(S, <<>>, true),
            {Result, _} = To,
            Result ! {raced, iolist_to_binary(lists:reverse([Data | Acc])), Moves},
            timer:sleep(infinity);
        {quic_dist_stream, S, {data, Data, false}} ->
            pass(To, S, [Data | Acc], Moves, Others)
    after 0 ->
        pass(To, S, Acc, Moves, Others)
    end.

pass({_, Sender} = To, S, Acc, Moves, [Next | Rest]) ->
    _ = Moves =:= 100 andalso (Sender ! enough),
    ok = quic_dist:send(S, ?S:numbers(Moves * ?BACK, ?BACK)),
    %% whoever has the stream and whoever has the list must be the same
    ok = quic_dist:controlling_process(S, Next),
    Next ! {baton, S, Acc, Moves + 1, Rest ++ [self()]},
    runner(To).

%% A mailbox that is kept off the heap, and that many send to at once, has several entrances: what different senders send has no order then.
%% Here it has them from the beginning, and its owner does not look at it while what the old owner had comes, and then more.
order_in_a_contended_mailbox(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Self = self(),
        _ = erts_debug:set_internal_state(available_internal_state, true),
        [begin
             Looks = atomics:new(1, []),
             Heir = spawn_opt(fun() ->
                 true = erts_debug:set_internal_state(proc_sig_buffers, true),
                 Self ! ready,
                 busy(Looks),
                 receive {collect, S} -> Self ! ?S:collect(S) end
             end, [link, {message_queue_data, off_heap}]),
             receive ready -> ok end,
             Owner = spawn_link(fun() ->
                 {ok, S} = quic_dist:open_stream(B),
                 ok = quic_dist:send(S, <<"x">>),
                 Self ! {opened, S},
                 receive give -> ok = quic_dist:controlling_process(S, Heir) end,
                 Self ! given
             end),
             {_, _, Id} = S = receive {opened, Opened} -> Opened end,
             T = {quic_dist_stream, node(), Id},
             receive {Peer, {_, T, {data, <<"x">>, false}}} -> ok after 20000 -> error(deadline) end,
             ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<1:32>>) end),
             ok = ?S:wait_for(fun() -> process_info(Owner, message_queue_len) =:= {message_queue_len, 1} end),
             Owner ! give,
             receive given -> ok end,
             ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<2:32>>, true) end),
             timer:sleep(5),
             ok = atomics:put(Looks, 1, 1),
             Heir ! {collect, S},
             receive {fin, <<1:32, 2:32>>} -> ok; {fin, Wrong} -> error({out_of_order, Wrong}) after 20000 -> error(deadline) end
         end || _ <- lists:seq(1, 20)],
        ok
    end).

busy(Looks) ->
    case atomics:get(Looks, 1) of
        0 -> busy(Looks);
        1 -> ok
    end.

mailbox_follows(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Self = self(),
        {ok, S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<"x">>),
        {_, T, _} = ?S:told(Peer, 20000),
        ok = ?S:call(Peer, fun() -> [ok = quic_dist:send(T, <<I:32>>) || I <- lists:seq(1, 1000)], quic_dist:send(T, <<>>, true) end),
        ok = quic_dist:close_stream(S),
        %% all of it, the end included, waits here
        ok = ?S:wait_for(fun() ->
            {messages, Messages} = process_info(self(), messages),
            lists:member({quic_dist_stream, S, closed}, Messages)
        end),
        {error, unknown_stream} = quic_dist:controlling_process(S, self()),
        {ok, U} = quic_dist:open_stream(B),
        ok = quic_dist:send(U, <<"x">>),
        V = {quic_dist_stream, node(), element(3, U)},
        receive {Peer, {_, V, {data, _, _}}} -> ok after 20000 -> error(deadline) end,
        ok = ?S:call(Peer, fun() -> [ok = quic_dist:send(V, <<I:32>>) || I <- lists:seq(1, 1000)], ok end),
        timer:sleep(100),
        Heir = spawn_link(fun() -> receive {S2, go} -> Self ! {self(), ?S:collect(S2)} end end),
        ok = quic_dist:controlling_process(U, Heir),
        Heir ! {U, go},
        ok = ?S:call(Peer, fun() -> quic_dist:send(V, <<1001:32>>, true) end),
        Numbers = ?S:numbers(1, 1001),
        receive {Heir, {fin, Numbers}} -> ok after 20000 -> error(deadline) end,
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
             receive {Peer, {_, {_, _, Id}, {data, _, _}}} -> Opener ! stop after 20000 -> error(deadline) end,
             {reset, ?OWNER_DOWN} = last_told(Peer, Id),
             %% the other way round
             {ok, S} = quic_dist:open_stream(B),
             Step(S),
             Acceptor = ?S:call(Peer, fun() -> spawn(fun() -> receive stop -> ok end end) end),
             {_, T, {data, _, _}} = ?S:told(Peer, 20000),
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
        receive all_open -> ok after 20000 -> error(deadline) end,
        [receive {Peer, {_, _, {data, <<"x">>, false}}} -> ok after 20000 -> error(deadline) end || _ <- lists:seq(1, 500)],
        500 = length(quic_dist:list_streams(B)),
        exit(Many, kill),
        ok = ?S:wait_for(fun() -> quic_dist:list_streams(B) =:= [] end),
        500 = length([x || _ <- lists:seq(1, 500), ok =:= reset_told(Peer)]),
        Me = node(),
        [] = ?S:call(Peer, fun() -> quic_dist:list_streams(Me) end)
    end).

last_told(Peer, Id) ->
    case ?S:told(Peer, 20000) of
        {quic_dist_stream, {_, _, Id}, {data, _, _}} -> last_told(Peer, Id);
        {quic_dist_stream, {_, _, Id}, End} -> End;
        _Other -> last_told(Peer, Id)
    end.

reset_told(Peer) ->
    case ?S:told(Peer, 20000) of
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
        ok = ?S:wait_dead(Taker),
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
        receive {heir, {quic_dist_stream, S3, {reset, 9}}} -> ok after 20000 -> error(deadline) end,
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
                     receive {told, S, {reset, 6}} -> ok after 20000 -> error({heir_not_told, S}) end;
                 _ ->
                     receive {quic_dist_stream, S, {reset, 6}} -> ok after 20000 -> error({not_told, Use, S}) end
             end
         end || Use <- Uses, _ <- lists:seq(1, 100)],
        [] = quic_dist:list_streams(B),
        timer:sleep(50),
        receive {Ref, _} = Stray when is_reference(Ref) -> error(Stray) after 0 -> ok end,
        receive {quic_dist_stream, _, _} = Twice -> error(Twice) after 0 -> ok end
    end).
