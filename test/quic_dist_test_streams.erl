%% Processes on the nodes under test that open, accept, send on and read streams of the application's own.
-module(quic_dist_test_streams).

-export([pair/0, pair/1, on_pair/1, on_pair/2, bad_network/0, on_path/3, behind_relay/3, acceptor/2, acceptor/3, on/4, call/2, told/2, collect/1, collect/2, drained/0]).
-export([wait_for/1, wait_dead/1, grows_less/3]).
-export([forward/3, serve/1, echo/1, sink/2, numbers/2]).

-define(LIB, quic_dist_test_lib).
-define(PATIENCE, 20000).

%% Two connected nodes.
-spec pair() -> {map(), map(), node(), node()}.
pair() -> pair([]).

-spec pair([string()]) -> {map(), map(), node(), node()}.
pair(Args) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-kernel", "net_ticktime", "300" | Args]} || T <- ["a", "b"]]),
    ?LIB:connect(A, B),
    {A, B, ?LIB:node(A), ?LIB:node(B)}.

%% Runs a fun on the first of two connected nodes, with the other's name.
-spec on_pair(fun((node()) -> Result)) -> Result.
on_pair(Fun) ->
    {A, _, _, NodeB} = pair(),
    ?LIB:run(A, fun() -> Fun(NodeB) end, 80000).

%% The same, behind a relay if the suite's group has said so: `{path, Options}`.
-spec on_pair(list(), fun((node()) -> Result)) -> Result.
on_pair(Config, Fun) ->
    case proplists:get_value(path, Config) of
        undefined -> on_pair(Fun);
        Options -> on_path(Options, ["-kernel", "net_ticktime", "300"], Fun)
    end.

%% What a relay does in a bad network.
-spec bad_network() -> quic_dist_relay:options().
bad_network() -> #{loss => 0.02, duplicate => 0.02, reorder => 0.05}.

%% Runs a fun on the first of two nodes with a relay between them, with the other's name.
-spec on_path(quic_dist_relay:options(), [string()], fun((node()) -> Result)) -> Result.
on_path(Options, Args, Fun) ->
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-epmd_module", "quic_dist_test_epmd" | Args]} || T <- ["a", "b"]]),
    Relay = behind_relay(A, B, Options),
    NodeB = ?LIB:node(B),
    Result = ?LIB:run(A, fun() -> Fun(NodeB) end, 100000),
    #{dropped := Dropped, duplicated := Duplicated, delayed := Delayed} = Stats = quic_dist_relay:stats(Relay),
    ct:log("~p", [Stats]),
    %% a relay that did nothing would be no test
    true = Dropped + Duplicated + Delayed > 0 orelse not is_map_key(loss, Options),
    quic_dist_relay:stop(Relay),
    Result.

%% Connects A to B by a relay. Both were started with `-epmd_module quic_dist_test_epmd`.
-spec behind_relay(map(), map(), quic_dist_relay:options()) -> pid().
behind_relay(A, B, Options) ->
    Alive = hd(string:lexemes(atom_to_list(?LIB:node(B)), "@")),
    {port, Port, _} = ?LIB:call(A, erl_epmd, port_please, [Alive, {127, 0, 0, 1}]),
    {Relay, RelayPort} = quic_dist_relay:start(Options#{to => Port}),
    ok = ?LIB:call(A, quic_dist_test_epmd, route, [#{Alive => RelayPort}]),
    ?LIB:connect(A, B),
    Relay.

%% Runs a fun on A, and lets its process live until the resident memory of A and B has grown by less than so many bytes.
-spec grows_less({map(), map()}, pos_integer(), fun(() -> Result)) -> Result.
grows_less({A, B}, Most, Fun) ->
    [ok = ?LIB:collect(H) || H <- [A, B]],
    Before = [?LIB:rss(H) || H <- [A, B]],
    {Keeper, Result} = ?LIB:run(A, fun() ->
        Self = self(),
        Pid = spawn(fun() ->
            Self ! {self(), Fun()},
            receive stop -> ok end
        end),
        receive {Pid, R} -> {Pid, R} end
    end, 60000),
    ct:log("~p; ~p before, ~p after", [Result, Before, [?LIB:rss(H) || H <- [A, B]]]),
    [?LIB:wait_until({grown, Was}, fun() -> ok = ?LIB:collect(H), ?LIB:rss(H) - Was < Most end, 10000) || {H, Was} <- lists:zip([A, B], Before)],
    _ = ?LIB:run(A, fun() -> Keeper ! stop end),
    Result.

%%% Called on one node, about a process on the other

%% A process on Node that accepts our streams and tells us all that it is told.
-spec acceptor(node(), list()) -> pid().
acceptor(Node, Opts) -> acceptor(Node, Opts, forward).

%% The same, but it does Kind: `forward`, `echo`.
-spec acceptor(node(), list(), atom()) -> pid().
acceptor(Node, Opts, forward) -> on(Node, ?MODULE, forward, [self(), node(), Opts]);
acceptor(Node, _Opts, Kind) -> on(Node, ?MODULE, Kind, [self()]).

%% Starts a function there that says when it is ready.
-spec on(node(), module(), atom(), [term()]) -> pid().
on(Node, M, F, A) ->
    Pid = spawn(Node, M, F, A),
    receive {Pid, ready} -> Pid after ?PATIENCE -> error({not_ready, F}) end.

%% Has the process there run a fun.
-spec call(pid(), fun(() -> term())) -> term().
call(Pid, Fun) ->
    Ref = make_ref(),
    Pid ! {run, self(), Ref, Fun},
    receive {Ref, Result} -> Result after ?PATIENCE -> error(deadline) end.

%% The next message about a stream that the process there was told.
-spec told(pid(), timeout()) -> term().
told(Pid, Timeout) ->
    receive {Pid, Message} -> Message after Timeout -> error({not_told, process_info(self(), messages)}) end.

%% What a stream of ours brings until its end.
-spec collect({quic_dist_stream, node(), non_neg_integer()}) -> {fin | {reset, term()}, binary()}.
collect(Stream) -> collect(Stream, ?PATIENCE).

-spec collect({quic_dist_stream, node(), non_neg_integer()}, timeout()) -> {fin | {reset, term()}, binary()}.
collect(Stream, Timeout) -> collect(Stream, Timeout, []).

collect(Stream, Timeout, Acc) ->
    receive
        {quic_dist_stream, Stream, {data, Data, false}} -> collect(Stream, Timeout, [Data | Acc]);
        {quic_dist_stream, Stream, {data, Data, true}} -> {fin, iolist_to_binary(lists:reverse([Data | Acc]))};
        {quic_dist_stream, Stream, {reset, Code}} -> {{reset, Code}, iolist_to_binary(lists:reverse(Acc))}
    after Timeout -> error({deadline, Stream, iolist_size(Acc), process_info(self(), messages)})
    end.

%% Nothing is left in our mailbox.
-spec drained() -> ok.
drained() ->
    {messages, []} = process_info(self(), messages),
    ok.

%% As long as the case has time.
-spec wait_for(fun(() -> boolean())) -> ok.
wait_for(Fun) ->
    case Fun() of
        true -> ok;
        false -> timer:sleep(10), wait_for(Fun)
    end.

-spec wait_dead(pid()) -> ok.
wait_dead(Pid) ->
    Ref = erlang:monitor(process, Pid),
    receive {'DOWN', Ref, _, _, _} -> ok after 20000 -> error(deadline) end.

%%% Run there

-spec forward(pid(), node(), list()) -> no_return().
forward(To, Node, Opts) ->
    ok = quic_dist:accept_streams(Node, Opts),
    To ! {self(), ready},
    serve(To).

-spec serve(pid()) -> no_return().
serve(To) ->
    receive
        {run, From, Ref, Fun} -> From ! {Ref, catch Fun()};
        Message -> To ! {self(), Message}
    end,
    serve(To).

%% Sends all back on the same stream.
-spec echo(pid()) -> no_return().
echo(To) ->
    ok = quic_dist:accept_streams(node(To), [{active, once}]),
    To ! {self(), ready},
    echo_loop().

echo_loop() ->
    receive
        {quic_dist_stream, Stream, {data, Data, Fin}} ->
            %% what the other side has reset meanwhile needs no answer
            case quic_dist:send(Stream, Data, Fin) of
                ok when not Fin -> quic_dist:setopts(Stream, [{active, once}]);
                _ -> ok
            end;
        {quic_dist_stream, _, _} -> ok;
        {run, From, Ref, Fun} -> From ! {Ref, Fun()}
    end,
    echo_loop().

%% Counts what each stream brings, and tells its digest at its end.
-spec sink(pid(), list()) -> no_return().
sink(To, Opts) ->
    ok = quic_dist:accept_streams(node(To), Opts),
    To ! {self(), ready},
    sink_loop(To, #{}).

sink_loop(To, States) ->
    receive
        {quic_dist_stream, {_, _, Id}, {data, Data, Fin}} ->
            State = crypto:hash_update(maps:get(Id, States, crypto:hash_init(sha256)), Data),
            case Fin of
                true ->
                    To ! {self(), {Id, crypto:hash_final(State)}},
                    sink_loop(To, maps:remove(Id, States));
                false ->
                    sink_loop(To, States#{Id => State})
            end;
        {quic_dist_stream, _, _} -> sink_loop(To, States);
        {run, From, Ref, Fun} -> From ! {Ref, Fun()}, sink_loop(To, States)
    end.

%% Numbered 4-byte words.
-spec numbers(non_neg_integer(), non_neg_integer()) -> binary().
numbers(First, Count) -> << <<I:32>> || I <- lists:seq(First, First + Count - 1) >>.
