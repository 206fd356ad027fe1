%% The hand of the Common Test node inside a node under test: it runs what it is told over a TCP control socket,
%% so that a test can drive a node whose distribution is broken, stopped, or not started at all.
%% When the control socket closes the node halts: a test run that is killed leaves no node behind.
%% It also keeps, on request, what a test asserts afterwards: the node's log events, and its nodeup and nodedown messages.
-module(quic_dist_test_agent).

-export([start/1, serve/2, keep_log/0, log_lines/0, watch_nodes/0, node_events/0, nodedown_at/0]).
%% logger's callback
-export([log/2]).

-define(LOG, quic_dist_test_log).
-define(EVENTS, quic_dist_test_events).

%% `erl -run quic_dist_test_agent start PORT`, or the path of a local socket: a node in another network namespace has another
%% loopback.
-spec start([string()]) -> pid().
start(["/" ++ _ = Path]) ->
    serve(fun(Options) -> gen_tcp:connect({local, Path}, 0, Options, 10000) end, []);
start([Port]) ->
    serve(fun(Options) -> gen_tcp:connect({127, 0, 0, 1}, list_to_integer(Port), [{nodelay, true} | Options], 10000) end, []).

%% Obeys whoever is at the other end of the socket that Connect opens with the options it gets; calls run in processes that are spawned
%% with SpawnOptions.
-spec serve(fun(([term()]) -> {ok, gen_tcp:socket()} | {error, term()}), [term()]) -> pid().
serve(Connect, SpawnOptions) ->
    spawn(fun() -> connect(Connect, SpawnOptions) end).

connect(Connect, SpawnOptions) ->
    try
        {ok, Socket} = Connect([binary, {packet, 4}, {active, true}]),
        reply(Socket, {hello, node(), list_to_integer(os:getpid())}),
        loop(Socket, SpawnOptions)
    catch
        Class:Reason -> halt(lists:flatten(io_lib:format("agent ~p:~p", [Class, Reason])))
    end.

loop(Socket, SpawnOptions) ->
    receive
        {tcp, Socket, Data} ->
            {call, Seq, M, F, A} = binary_to_term(Data),
            Agent = self(),
            _ = spawn_opt(fun() -> Agent ! {result, Seq, apply_one(M, F, A)} end, SpawnOptions),
            loop(Socket, SpawnOptions);
        {result, Seq, Result} ->
            reply(Socket, {reply, Seq, Result}),
            loop(Socket, SpawnOptions);
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

%% Starts to keep this node's log events, for log_lines/0.
-spec keep_log() -> ok.
keep_log() ->
    keeper(?LOG, fun() -> ok = logger:add_handler(?LOG, ?MODULE, #{level => all}) end, fun(_) -> ok end).

%% Level and text of each event, oldest first.
-spec log_lines() -> [{logger:level(), binary()}].
log_lines() -> [Line || {_, Line} <- ets:tab2list(?LOG)].

-spec log(logger:log_event(), logger:handler_config()) -> true.
log(#{level := Level} = Event, _Config) ->
    Text = logger_formatter:format(Event, #{single_line => true, template => [msg]}),
    store(?LOG, {Level, unicode:characters_to_binary(Text)}).

%% Starts to keep nodeup and nodedown messages, for node_events/0.
-spec watch_nodes() -> ok.
watch_nodes() ->
    keeper(?EVENTS, fun() -> ok = net_kernel:monitor_nodes(true, [nodedown_reason, {node_type, all}]) end,
           fun({nodeup, Node, _}) -> store(?EVENTS, {nodeup, Node});
              ({nodedown, Node, Info}) -> store(?EVENTS, {nodedown, Node, proplists:get_value(nodedown_reason, Info)})
           end).

%% Oldest first.
-spec node_events() -> [{nodeup, node()} | {nodedown, node(), term()}].
node_events() -> [Event || {_, Event} <- ets:tab2list(?EVENTS)].

%% When, by the system's clock in ms, and why the first node went that went.
-spec nodedown_at() -> {integer(), term()} | none.
nodedown_at() ->
    case [{At, Reason} || {{_, At}, {nodedown, _, Reason}} <- ets:tab2list(?EVENTS)] of
        [First | _] -> First;
        [] -> none
    end.

store(Table, Entry) -> ets:insert(Table, {{erlang:unique_integer([monotonic]), os:system_time(millisecond)}, Entry}).

%% A process that owns Table and handles what Begin makes it receive. It is there when this returns.
keeper(Table, Begin, Handle) ->
    Caller = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        ets:new(Table, [named_table, public, ordered_set]),
        Begin(),
        Caller ! {self(), kept},
        keep(Handle)
    end),
    receive
        {Pid, kept} -> erlang:demonitor(Monitor, [flush]), ok;
        {'DOWN', Monitor, process, Pid, Reason} -> error({keeper, Table, Reason})
    end.

keep(Handle) ->
    receive Message -> Handle(Message) end,
    keep(Handle).
