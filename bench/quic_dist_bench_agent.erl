%% The hand of the benchmark inside a node: it runs what it is told over a Unix socket, so that nothing that controls or counts goes over
%% the distribution that is measured. A path names that socket in every network namespace. When it closes, the node halts.
-module(quic_dist_bench_agent).

-export([start/1]).

%% `erl -run quic_dist_bench_agent start SOCKET'
-spec start([string()]) -> pid().
start([Path]) ->
    spawn(fun() -> connect(Path) end).

connect(Path) ->
    try
        {ok, Socket} = gen_tcp:connect({local, Path}, 0, [binary, {packet, 4}, {active, true}], 10000),
        reply(Socket, {hello, node(), list_to_integer(os:getpid())}),
        loop(Socket)
    catch
        Class:Reason -> halt(lists:flatten(io_lib:format("agent ~p:~p", [Class, Reason])))
    end.

loop(Socket) ->
    receive
        {tcp, Socket, Data} ->
            {call, Seq, M, F, A} = binary_to_term(Data),
            Agent = self(),
            %% What is asked must get a turn among processes that send without pause.
            _ = spawn_opt(fun() -> Agent ! {result, Seq, apply_one(M, F, A)} end, [{priority, high}]),
            loop(Socket);
        {result, Seq, Result} ->
            reply(Socket, {reply, Seq, Result}),
            loop(Socket);
        {tcp_closed, Socket} ->
            erlang:halt(0, [{flush, false}]);
        {tcp_error, Socket, _} ->
            erlang:halt(0, [{flush, false}])
    end.

apply_one(M, F, A) ->
    try {ok, apply(M, F, A)}
    catch Class:Reason:Stack -> {Class, Reason, Stack}
    end.

reply(Socket, Term) ->
    ok = gen_tcp:send(Socket, term_to_binary(Term)).
