%% What a program written for erlang_quic's user streams relies on, besides what streams_SUITE shows of the API: the specification's functions by
%% controller, the programs of its documentation, and where its answer is `ok`. docs/streams.md lists what is different on purpose.
-module(stream_compat_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([of_the_controller/1, documented_program/1, controller_functions/1, other_carriers/1, finishing_again/1, finishing_what_has_ended/1,
         nearest_priority/1, dead_processes/1, processes_elsewhere/1]).
%% run on the nodes
-export([pool/2]).

-define(LIB, quic_dist_test_lib).
-define(CA, quic_dist_test_ca).
-define(S, quic_dist_test_streams).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [of_the_controller, documented_program, controller_functions, other_carriers, finishing_again, finishing_what_has_ended, nearest_priority,
     dead_processes, processes_elsewhere].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

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
                                                       {controlling_process, 3}, {list_user_streams, 1},
                                                       %% all but start_link/2, which docs/streams.md says
                                                       {get_address, 2}, {get_node, 1}, {getll, 1}, {getstat, 1}, {pre_nodeup, 1},
                                                       {recv, 3}, {send, 2}, {set_node, 2}, {set_supervisor, 2}, {tick, 1}]}],
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

%%% Its answers

%% What the specification has of the connection itself, on one that is up.
controller_functions(_Config) ->
    ?S:on_pair(fun(B) ->
        {ok, C} = quic_dist:get_controller(B),
        {ok, B} = quic_dist_controller:get_node(C),
        %% it has its name already
        ok = quic_dist_controller:set_node(C, B),
        {error, einval} = quic_dist_controller:set_node(C, nowhere),
        {ok, B} = quic_dist_controller:get_node(C),
        {ok, C} = quic_dist_controller:getll(C),
        ok = quic_dist_controller:tick(C),
        {ok, Received, Sent, 0} = quic_dist_controller:getstat(C),
        true = Received > 0 andalso Sent > 0,
        {ok, {net_address, {{127, 0, 0, 1}, Port}, "127.0.0.1", quic, inet} = Address} = quic_dist_controller:get_address(C, B),
        {ok, Info} = net_kernel:node_info(B),
        {address, Address} = lists:keyfind(address, 1, Info),
        [#{node := B, peer := {{127, 0, 0, 1}, Port}}] = maps:get(connections, quic_dist:info()),
        {error, no_node} = quic_dist_controller:get_address(C, nowhere),
        Gone = spawn(fun() -> ok end),
        {error, closed} = quic_dist_controller:get_address(Gone, B),
        ok
    end).

%% A node that is connected, but not by QUIC: its controller is a port (inet_tcp) or a process (inet_tls).
other_carriers(Config) ->
    Authority = ?CA:authority("authority"),
    Leaf = ?CA:leaf(Authority, #{names => [{ip, {127, 0, 0, 1}}]}),
    [Cert, Key] = [?CA:write(filename:join(?config(priv_dir, Config), Name), Pem)
                   || {Name, Pem} <- [{"other.pem", ?CA:pem(Leaf)}, {"other.key", ?CA:key_pem(Leaf)}]],
    Terms = [{server, [{certfile, Cert}, {keyfile, Key}]}, {client, [{verify, verify_none}]}],
    Tls = ?CA:write(filename:join(?config(priv_dir, Config), "other.opt"), io_lib:format("~p.~n", [Terms])),
    Pairs = [?LIB:start_all([#{carrier => Carrier, tag => T, args => Args} || T <- ["a", "b"]])
             || {Carrier, Args} <- [{"inet_tcp", []}, {"inet_tls", ["-ssl_dist_optfile", Tls]}]],
    [begin
         ?LIB:connect(A, B),
         Node = ?LIB:node(B),
         Stream = {quic_dist_stream, Node, 20},
         [{error, not_quic_connection} = ?LIB:call(A, quic_dist, F, Args)
          || {F, Args} <- [{open_stream, [Node]}, {accept_streams, [Node]}, {stop_accepting, [Node]}, {get_controller, [Node]},
                           {send, [Stream, <<"x">>]}, {close_stream, [Stream]}, {reset_stream, [Stream]}, {recv, [Stream, 1]},
                           {send_datagram, [Node, <<"x">>]}, {datagram_size, [Node]}]],
         [] = ?LIB:call(A, quic_dist, list_streams, [Node]),
         {error, not_connected} = ?LIB:call(A, quic_dist, open_stream, ['nobody@127.0.0.1'])
     end || [A, B] <- Pairs],
    ok.

%% Who has finished says so again, in either way: it is so. The peer is told once.
finishing_again(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        Finish = [fun(S) -> quic_dist:close_stream(S) end, fun(S) -> quic_dist:send(S, <<>>, true) end],
        [begin
             {ok, S} = quic_dist:open_stream(B),
             ok = quic_dist:send(S, <<"all">>, true),
             ok = First(S),
             ok = Second(S),
             {error, closed} = quic_dist:send(S, <<"more">>),
             {error, closed} = quic_dist:send(S, <<"more">>, true),
             {quic_dist_stream, T, {data, <<"all">>, true}} = ?S:told(Peer, 5000),
             %% the other side, which has heard the end already
             ok = ?S:call(Peer, fun() -> quic_dist:send(T, <<"answer">>, true) end),
             {quic_dist_stream, T, closed} = ?S:told(Peer, 5000),
             ok = ?S:call(Peer, fun() -> First(T) end),
             ok = ?S:call(Peer, fun() -> Second(T) end),
             {fin, <<"answer">>} = ?S:collect(S),
             receive {quic_dist_stream, S, closed} -> ok after 5000 -> error(deadline) end
         end || First <- Finish, Second <- Finish],
        receive {Peer, More} -> error(More) after 200 -> ok end,
        ?S:drained()
    end).

%% However it ended. What never was a stream of the application's is none.
finishing_what_has_ended(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, {_, _, Id} = S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<"x">>),
        {quic_dist_stream, {_, Me, Id} = T, {data, <<"x">>, false}} = ?S:told(Peer, 5000),
        %% its owner at the other side takes what it wanted, and is gone
        exit(Peer, kill),
        receive {quic_dist_stream, S, {reset, 0}} -> ok after 5000 -> error(deadline) end,
        ok = quic_dist:close_stream(S),
        ok = quic_dist:send(S, <<>>, true),
        {error, unknown_stream} = quic_dist:send(S, <<"x">>),
        {error, unknown_stream} = quic_dist:reset_stream(S),
        ok = erpc:call(B, quic_dist, close_stream, [T]),
        %% neither this side's next, nor the other one's first, nor the distribution's
        [begin
             {error, unknown_stream} = quic_dist:close_stream({quic_dist_stream, B, Other}),
             {error, unknown_stream} = erpc:call(B, quic_dist, close_stream, [{quic_dist_stream, Me, Other}])
         end || Other <- [Id + 4, 17, 0, 1, 4, 2, 3]],
        ?S:drained()
    end).

nearest_priority(_Config) ->
    ?S:on_pair(fun(B) ->
        Priority = fun(S) -> {ok, [{priority, P}]} = quic_dist:getopts(S, [priority]), P end,
        [begin
             {ok, S} = quic_dist:open_stream(B, [{priority, Asked}]),
             Got = Priority(S),
             ok = quic_dist:set_priority(S, 100),
             100 = Priority(S),
             ok = quic_dist:set_priority(S, Asked),
             Got = Priority(S)
         end || {Asked, Got} <- [{-1, 16}, {0, 16}, {15, 16}, {16, 16}, {255, 255}, {256, 255}, {1 bsl 70, 255}]],
        ok
    end).

%% A process that is named and is dead already: as if it had died a moment later, which nobody can rule out.
dead_processes(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, C} = quic_dist:get_controller(B),
        {Dead, Monitor} = spawn_monitor(fun() -> ok end),
        receive {'DOWN', Monitor, process, Dead, _} -> ok end,
        {ok, 20} = quic_dist_controller:open_user_stream(C, Dead),
        {ok, {_, _, 24} = S} = quic_dist:open_stream(B),
        ok = quic_dist:send(S, <<"x">>),
        {quic_dist_stream, T, {data, <<"x">>, false}} = ?S:told(Peer, 5000),
        ok = quic_dist:controlling_process(S, Dead),
        {quic_dist_stream, T, {reset, 0}} = ?S:told(Peer, 5000),
        ?LIB:wait_until(fun() -> quic_dist:list_streams(B) =:= [] end, 5000),
        %% an acceptor that is dead takes no stream
        ok = quic_dist_controller:accept_user_streams(C, Dead),
        Me = node(),
        {ok, {_, _, 17} = U} = ?S:call(Peer, fun() -> quic_dist:open_stream(Me) end),
        ok = ?S:call(Peer, fun() -> quic_dist:send(U, <<"x">>) end),
        {quic_dist_stream, U, {reset, 16#100}} = ?S:told(Peer, 5000),
        ?S:drained()
    end).

%% Owners and acceptors are processes of this node.
processes_elsewhere(_Config) ->
    ?S:on_pair(fun(B) ->
        Peer = ?S:acceptor(B, []),
        {ok, C} = quic_dist:get_controller(B),
        {ok, S} = quic_dist:open_stream(B),
        Refused = {error, {bad_option, owner, Peer}},
        Refused = quic_dist_controller:open_user_stream(C, Peer),
        Refused = quic_dist_controller:accept_user_streams(C, Peer),
        Refused = quic_dist:controlling_process(S, Peer),
        Self = self(),
        [#{ref := S, owner := Self}] = quic_dist:list_streams(B),
        ok
    end).
