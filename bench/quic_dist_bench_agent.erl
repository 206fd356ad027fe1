%% The hand of the benchmark inside a node: it runs what it is told over a Unix socket, so that nothing that controls or counts goes over
%% the distribution that is measured. A path names that socket in every network namespace. When it closes, the node halts.
-module(quic_dist_bench_agent).

-export([start/1]).

%% `erl -run quic_dist_bench_agent start SOCKET'. What is asked must get a turn among processes that send without pause.
-spec start([string()]) -> pid().
start([Path]) ->
    quic_dist_test_agent:serve(fun(Options) -> gen_tcp:connect({local, Path}, 0, Options, 10000) end, [{priority, high}]).
