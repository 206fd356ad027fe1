%% What runs on the nodes: the processes that send, receive and measure. Each function is called through quic_dist_bench_agent.
%%
%% A latency is taken on one node with its monotonic clock, in nanoseconds. A rate is counted where messages arrive.
-module(quic_dist_bench_load).

-export([connect/2, disconnect/1, resumed/1, start_receivers/1, start_senders/3, start_sender/3, stop/0, sample/0, sample_after/2]).
-export([start_echo/0, pingpong/3, steady/4, start_erpc/2, echo/1]).
-export([start_sink/1, start_sources/2, start_stream_echo/1, first_bytes/2]).
-export([endpoint/0, collect_garbage/0, memory/0, loaded/0, load_code/1, start_ticks/0, ticks/0]).

-export_type([sample/0]).

-type sample() :: #{count := non_neg_integer(), at := integer(), last := integer()}.
%% Messages that have come, when this was read, and when the last of them came (ns).

-define(COUNTED, quic_dist_bench_counted).
-define(STARTED, quic_dist_bench_started).
-define(ECHO, quic_dist_bench_echo).
-define(TICKS, quic_dist_bench_ticks).
%% Places in the counter.
-define(COUNT, 1).
-define(LAST, 2).

%%% Connections

%% Nanoseconds that it took until Node was connected; `false' if it was not.
-spec connect(node(), non_neg_integer()) -> integer() | false.
connect(Node, Retries) ->
    Started = now_ns(),
    case net_kernel:connect_node(Node) of
        true -> now_ns() - Started;
        _ when Retries > 0 -> timer:sleep(100), connect(Node, Retries - 1);
        _ -> false
    end.

-spec disconnect(node()) -> ok.
disconnect(Node) ->
    _ = erlang:disconnect_node(Node),
    await_gone(Node, 200).

%% Whether the connection to Node has resumed a session, by the engine's word.
-spec resumed(node()) -> boolean() | unknown.
resumed(Node) ->
    case erlang:module_loaded(quic_dist_endpoint) andalso quic_dist:info() of
        #{connections := Connections} -> hd([Resumed || #{node := N, resumed := Resumed} <- Connections, N =:= Node] ++ [unknown]);
        false -> unknown
    end.

await_gone(Node, Tries) ->
    case lists:member(Node, nodes(connected)) of
        false -> ok;
        true when Tries > 0 -> timer:sleep(5), await_gone(Node, Tries - 1)
    end.

%%% Messages one way

%% Receivers receiver_1 to receiver_N, which count together.
-spec start_receivers(pos_integer()) -> ok.
start_receivers(N) ->
    Counter = counters:new(2, []),
    persistent_term:put(?COUNTED, Counter),
    started([receiver(name(I), Counter) || I <- lists:seq(1, N)]).

receiver(Name, Counter) ->
    Parent = self(),
    %% A carrier that delivers more than one process takes fills its mailbox; collected on the heap, it would slow the process to a crawl.
    Pid = spawn_opt(fun() ->
        true = register(Name, self()),
        Parent ! {self(), ready},
        receive_all(Counter)
    end, [{message_queue_data, off_heap}]),
    receive {Pid, ready} -> Pid end.

receive_all(Counter) ->
    receive
        {large, _} -> counters:put(Counter, ?LAST, now_ns());
        {large, From, _} -> counters:put(Counter, ?LAST, now_ns()), From ! answer;
        _Small -> ok
    end,
    counters:add(Counter, ?COUNT, 1),
    receive_all(Counter).

%% N processes, each of which sends What to its receiver on Node until stop/0; if it is to be answered, one after the other.
-spec start_senders(node(), pos_integer(), {binary | answered, pos_integer()} | maps) -> ok.
start_senders(Node, N, {answered, Size}) ->
    Bytes = rand:bytes(Size),
    started([spawn(fun() -> send_answered({name(I), Node}, {large, self(), Bytes}) end) || I <- lists:seq(1, N)]);
start_senders(Node, N, What) ->
    Message = message(What),
    started([spawn(fun() -> send_all({name(I), Node}, Message) end) || I <- lists:seq(1, N)]).

%% One process that sends What to a receiver on Node until stop/0.
-spec start_sender(node(), pos_integer(), {binary, pos_integer()}) -> ok.
start_sender(Node, Receiver, What) ->
    Message = message(What),
    started([spawn(fun() -> send_all({name(Receiver), Node}, Message) end)]).

send_all(To, Message) ->
    To ! Message,
    send_all(To, Message).

send_answered(To, Message) ->
    To ! Message,
    receive answer -> ok end,
    send_answered(To, Message).

%% Only where a message takes long is the time of the last one of use, and cheap enough.
message({binary, Size}) when Size >= 65536 -> {large, rand:bytes(Size)};
message({binary, Size}) -> rand:bytes(Size);
message(maps) ->
    [#{id => I, name => <<"name ", (integer_to_binary(I))/binary>>, position => {I * 0.5, I * 1.5}, tags => [red, green, blue]}
     || I <- lists:seq(1, 10000)].

name(I) -> list_to_atom("receiver_" ++ integer_to_list(I)).

%% Ends what was started on this node.
-spec stop() -> ok.
stop() ->
    Pids = persistent_term:get(?STARTED, []),
    persistent_term:put(?STARTED, []),
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    [exit(Pid, kill) || Pid <- Pids],
    [receive {'DOWN', Monitor, process, _, _} -> ok end || Monitor <- Monitors],
    collect_garbage().

started(Pids) ->
    persistent_term:put(?STARTED, Pids ++ persistent_term:get(?STARTED, [])).

-spec sample() -> sample().
sample() ->
    Counter = persistent_term:get(?COUNTED),
    Last = counters:get(Counter, ?LAST),
    #{count => counters:get(Counter, ?COUNT), at => now_ns(), last => Last}.

%% A sample after that many milliseconds, or as soon after them as the count has reached AtLeast (for 30 s at most).
-spec sample_after(pos_integer(), non_neg_integer()) -> sample().
sample_after(Ms, AtLeast) ->
    timer:sleep(Ms),
    sample_at_least(AtLeast, now_ns() + 30_000_000_000).

sample_at_least(AtLeast, Deadline) ->
    case sample() of
        #{count := Count, at := At} = Sample when Count >= AtLeast; At > Deadline -> Sample;
        _ -> timer:sleep(10), sample_at_least(AtLeast, Deadline)
    end.

%%% Streams of the application's own

%% Takes what comes on streams of Node, and counts the bytes.
-spec start_sink(node()) -> ok.
start_sink(Node) ->
    Counter = counters:new(2, []),
    persistent_term:put(?COUNTED, Counter),
    acceptor(Node, fun() -> count_bytes(Counter) end).

count_bytes(Counter) ->
    receive
        {quic_dist_stream, _, {data, Data, _}} -> counters:add(Counter, ?COUNT, byte_size(Data));
        {quic_dist_stream, _, _} -> ok
    end,
    count_bytes(Counter).

%% N processes, each of which sends on a stream of its own to Node until stop/0.
-spec start_sources(node(), pos_integer()) -> ok.
start_sources(Node, N) ->
    Data = rand:bytes(256 bsl 10),
    started([spawn(fun() ->
                       {ok, Stream} = quic_dist:open_stream(Node),
                       send_stream(Stream, Data)
                   end) || _ <- lists:seq(1, N)]).

send_stream(Stream, Data) ->
    ok = quic_dist:send(Stream, Data),
    send_stream(Stream, Data).

%% Sends back what comes on streams of Node, and finishes them.
-spec start_stream_echo(node()) -> ok.
start_stream_echo(Node) ->
    acceptor(Node, fun stream_echo/0).

stream_echo() ->
    receive
        {quic_dist_stream, Stream, {data, Data, true}} -> ok = quic_dist:send(Stream, Data, true);
        {quic_dist_stream, _, closed} -> ok
    end,
    stream_echo().

acceptor(Node, Accept) ->
    Parent = self(),
    Pid = spawn(fun() ->
        ok = quic_dist:accept_streams(Node),
        Parent ! {self(), ready},
        Accept()
    end),
    receive {Pid, ready} -> started([Pid]) end.

%% Round trips of 16 bytes for Ms milliseconds, in turns: as a message to the echo process on Node, and on a new stream.
-spec first_bytes(node(), pos_integer()) -> {Messages :: binary(), Streams :: binary()}.
first_bytes(Node, Ms) ->
    in_process(fun() -> first_bytes(Node, now_ns() + Ms * 1000000, [], []) end).

first_bytes(Node, Deadline, Messages, Streams) ->
    case now_ns() of
        Now when Now > Deadline -> {pack(Messages), pack(Streams)};
        Now ->
            ok = message_there_and_back({?ECHO, Node}, Now),
            Between = now_ns(),
            {ok, Stream} = quic_dist:open_stream(Node),
            ok = quic_dist:send(Stream, <<Now:128>>, true),
            receive {quic_dist_stream, Stream, {data, <<Now:128/signed>>, true}} -> ok end,
            Done = now_ns(),
            receive {quic_dist_stream, Stream, closed} -> ok end,
            first_bytes(Node, Deadline, [Between - Now | Messages], [Done - Between | Streams])
    end.

message_there_and_back(To, Now) ->
    To ! {self(), <<Now:128>>},
    receive <<Now:128/signed>> -> ok end.

%%% Messages there and back

-spec start_echo() -> ok.
start_echo() ->
    Parent = self(),
    Pid = spawn(fun() ->
        true = register(?ECHO, self()),
        Parent ! {self(), ready},
        echo_all()
    end),
    receive {Pid, ready} -> started([Pid]) end.

echo_all() ->
    receive {From, Message} -> From ! Message end,
    echo_all().

%% Every round trip of 16 bytes to the echo process on Node, one after the other, for Ms milliseconds after WarmUp.
-spec pingpong(node(), non_neg_integer(), pos_integer()) -> binary().
pingpong(Node, WarmUp, Ms) ->
    in_process(fun() ->
        To = {?ECHO, Node},
        _ = pingpong_until(To, now_ns() + WarmUp * 1000000, []),
        pack(pingpong_until(To, now_ns() + Ms * 1000000, []))
    end).

pingpong_until(To, Deadline, Samples) ->
    Message = <<(now_ns()):128>>,
    Sent = now_ns(),
    To ! {self(), Message},
    receive Message -> ok end,
    case now_ns() of
        Now when Now < Deadline -> pingpong_until(To, Deadline, [Now - Sent | Samples]);
        Now -> [Now - Sent | Samples]
    end.

%% A message every Every milliseconds, whether the ones before it have come back or not, so that a wait counts for each message
%% that had to wait. A round trip begins when the message was due: being suspended in `!' is part of it.
-spec steady(node(), non_neg_integer(), pos_integer(), pos_integer()) -> binary().
steady(Node, WarmUp, Ms, Every) ->
    in_process(fun() ->
        Collector = self(),
        Step = Every * 1000000,
        First = now_ns(),
        Count = (WarmUp + Ms) div Every,
        _ = spawn_link(fun() -> steady_send({?ECHO, Node}, Collector, First, Step, 0, Count) end),
        pack(steady_collect(Count, First + WarmUp * 1000000, []))
    end).

steady_send(_To, _Collector, _Due, _Step, Count, Count) -> ok;
steady_send(To, Collector, Due, Step, N, Count) ->
    case Due - now_ns() of
        Early when Early > 0 -> timer:sleep((Early + 999999) div 1000000);
        _Late -> ok
    end,
    %% a timer wakes up to some milliseconds late: that is not the connection's doing, having been suspended is
    Begin = case get(suspended) of true -> Due; _ -> now_ns() end,
    To ! {Collector, <<Begin:128/signed>>},
    put(suspended, now_ns() - Begin > Step),
    steady_send(To, Collector, Due + Step, Step, N + 1, Count).

steady_collect(0, _From, Samples) -> Samples;
steady_collect(Left, From, Samples) ->
    receive
        <<Begin:128/signed>> when Begin >= From -> steady_collect(Left - 1, From, [now_ns() - Begin | Samples]);
        <<_:128>> -> steady_collect(Left - 1, From, Samples)
    after 20000 -> exit({lost, Left})
    end.

%% N callers of erpc:call/4, which count together on this node until stop/0.
-spec start_erpc(node(), pos_integer()) -> ok.
start_erpc(Node, N) ->
    Counter = counters:new(2, []),
    persistent_term:put(?COUNTED, Counter),
    started([spawn(fun() -> call_all(Node, Counter) end) || _ <- lists:seq(1, N)]).

call_all(Node, Counter) ->
    ok = erpc:call(Node, ?MODULE, echo, [ok]),
    counters:add(Counter, ?COUNT, 1),
    call_all(Node, Counter).

-spec echo(term()) -> term().
echo(Term) -> Term.

%%% What a node says of itself

%% Counters of the QUIC endpoint; #{} on another carrier.
-spec endpoint() -> map().
endpoint() ->
    case erlang:module_loaded(quic_dist_endpoint) of
        true -> hd(quic_dist_endpoint:info(inet) ++ [#{}]);
        false -> #{}
    end.

-spec collect_garbage() -> ok.
collect_garbage() ->
    _ = [erlang:garbage_collect(Pid) || Pid <- processes()],
    ok.

%% Bytes that the VM says it uses.
-spec memory() -> non_neg_integer().
memory() ->
    collect_garbage(),
    erlang:memory(total).

-spec loaded() -> [module()].
loaded() -> [Module || {Module, _} <- code:all_loaded()].

-spec load_code([module()]) -> ok.
load_code(Modules) -> lists:foreach(fun(Module) -> {module, _} = code:ensure_loaded(Module) end, Modules).

%% Counts the ticks that this node sends from now on on the QUIC connection it has: a controller is told of each by a message. The
%% engine is not asked, which would wake it.
-spec start_ticks() -> ok.
start_ticks() ->
    #{connections := [#{controller := Controller}]} = quic_dist:info(),
    Counter = counters:new(1, []),
    persistent_term:put(?TICKS, Counter),
    Parent = self(),
    Tracer = spawn(fun() ->
        1 = erlang:trace(Controller, true, ['receive']),
        _ = erlang:trace_pattern('receive', [{['_', '_', tick], [], []}], []),
        Parent ! {self(), ready},
        count_ticks(Counter)
    end),
    receive {Tracer, ready} -> ok end.

count_ticks(Counter) ->
    receive {trace, _, 'receive', tick} -> counters:add(Counter, 1, 1) end,
    count_ticks(Counter).

-spec ticks() -> non_neg_integer().
ticks() -> counters:get(persistent_term:get(?TICKS), 1).

%%% Helpers

%% A process of its own: a fresh mailbox and heap, at the priority of ordinary processes.
in_process(Fun) ->
    {Pid, Monitor} = spawn_opt(fun() -> exit({done, Fun()}) end, [monitor, {priority, normal}]),
    receive
        {'DOWN', Monitor, process, Pid, {done, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.

%% In the order in which they were measured.
pack(Samples) ->
    << <<Ns:64>> || Ns <- lists:reverse(Samples) >>.

now_ns() -> erlang:monotonic_time(nanosecond).
