%% @doc What `make demo' shows: three nodes on QUIC do some work together, and
%% one is killed. `scripts/demo' starts the nodes: two workers and, in the
%% foreground, the one that shows.
%%
%% Everything shown was measured or read from the running nodes. What does not
%% come out as it should ends the demo with exit status 1.
-module(quic_dist_demo).

-export([worker/1, show/1]).
%% Called on the workers with erpc.
-export([ready/0, receive_big/3, receive_small/2, watch/2, echo/1]).

-define(BIG_COUNT, 1024).
-define(BIG_SIZE, 1048576).
-define(SMALL_COUNT, 100000).
-define(CALLS, 3000).
%% Acknowledge every so many messages, for the progress bar.
-define(STRIDE, 16).

%%% The workers

%% @doc Stays until the node that shows is gone, however it went.
-spec worker([atom()]) -> no_return().
worker([Show]) ->
    ok = net_kernel:monitor_nodes(true),
    worker_wait(Show, 15000).

worker_wait(Show, Patience) ->
    receive
        {nodeup, Show} -> worker_wait(Show, infinity);
        {nodedown, Show} -> halt(0)
    after Patience -> halt(1)
    end.

%% @doc What a worker says of itself.
-spec ready() -> #{pid := string(), nodes := [node()]}.
ready() ->
    #{pid => os:getpid(), nodes => lists:sort(nodes())}.

-spec echo(term()) -> term().
echo(Term) ->
    Term.

%% @doc Receives numbered messages that each carry Payload, comparing every byte.
-spec receive_big(pid(), non_neg_integer(), binary()) -> ok.
receive_big(Sender, Count, Payload) ->
    Sender ! {self(), ready},
    receive_big(Sender, 1, Count, Payload).

receive_big(_Sender, N, Count, _Payload) when N > Count ->
    ok;
receive_big(Sender, N, Count, Payload) ->
    receive
        {big, N, Payload} ->
            case N rem ?STRIDE of
                0 -> Sender ! {self(), got, N};
                _ -> ok
            end,
            receive_big(Sender, N + 1, Count, Payload);
        {big, Other, _} ->
            exit({expected, N, got, Other})
    end.

%% @doc Receives the numbers 1 to Count, in this order.
-spec receive_small(pid(), non_neg_integer()) -> ok.
receive_small(Sender, Count) ->
    Sender ! {self(), ready},
    receive_small(Sender, 1, Count).

receive_small(Sender, N, Count) when N > Count ->
    Sender ! {self(), got, Count},
    ok;
receive_small(Sender, N, Count) ->
    receive
        {small, N} -> receive_small(Sender, N + 1, Count);
        {small, Other} -> exit({expected, N, got, Other})
    end.

%% @doc Tells To when Node goes down, why, and when by the wall clock.
-spec watch(pid(), node()) -> ok.
watch(To, Node) ->
    ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
    To ! {self(), ready},
    receive
        {nodedown, Node, Info} ->
            To ! {down, node(), Node, proplists:get_value(nodedown_reason, Info),
                  erlang:system_time(millisecond)},
            ok
    end.

%%% The node that shows

%% @doc Runs the whole demo and halts.
-spec show([atom()]) -> no_return().
show([Bob, Carol]) ->
    %% Whatever hangs, the demo ends.
    _ = spawn(fun() -> timer:sleep(90000), line("not done after 90 s", []), halt(1) end),
    try
        headline(),
        Workers = mesh(Bob, Carol),
        connections([node(), Bob, Carol]),
        big(Bob),
        small(Bob),
        round_trips(Bob),
        kill(Bob, Carol, maps:get(Carol, Workers)),
        line("~n~ts", [green("All done, nothing lost.")]),
        halt(0)
    catch
        throw:{failed, Text} ->
            line("~n~ts ~ts", [red("FAILED:"), Text]),
            halt(1);
        Class:Reason:Stack ->
            line("~n~ts ~p: ~p~n~p", [red("FAILED:"), Class, Reason, Stack]),
            halt(1)
    end.

headline() ->
    line("~n~ts   Erlang/OTP ~s, ERTS ~s, quic_dist ~s",
         [bold("Erlang distribution over QUIC"), erlang:system_info(otp_release),
          erlang:system_info(version), version()]).

version() ->
    _ = application:load(quic_dist),
    {ok, Version} = application:get_key(quic_dist, vsn),
    Version.

mesh(Bob, Carol) ->
    step("Three nodes, each an erl process of its own, find each other"),
    Started = now_us(),
    ok = wait(fun() -> net_kernel:connect_node(Bob) andalso
                       net_kernel:connect_node(Carol) end,
              "the workers did not answer"),
    %% Nobody told Bob of Carol: global meshes the nodes.
    ok = wait(fun() -> meshed([node(), Bob, Carol]) end, "the nodes did not mesh"),
    Took = now_us() - Started,
    Pids = maps:from_list([{N, maps:get(pid, erpc:call(N, ?MODULE, ready, []))}
                           || N <- [Bob, Carol]]),
    lists:foreach(fun({N, Pid}) -> line("   ~-22s os pid ~s", [N, Pid]) end,
                  [{node(), os:getpid()} | maps:to_list(Pids)]),
    line("   all connected to all in ~s", [duration(Took)]),
    Pids.

meshed(Nodes) ->
    lists:all(fun(N) ->
                      #{nodes := Seen} = erpc:call(N, ?MODULE, ready, []),
                      Seen =:= lists:sort(Nodes -- [N])
              end, Nodes).

%% One line for each connection, as one of its two ends sees it.
connections([A, B, C]) ->
    step("Their connections, as quic_dist:info() tells"),
    Rows = [row(From, To) || {From, To} <- [{A, B}, {A, C}, {B, C}]],
    table(["connection", "peer address", "TLS", "cipher", "peer verified by",
           "path MTU", "smoothed RTT"], Rows).

row(From, To) ->
    #{connections := Connections} = erpc:call(From, quic_dist, info, []),
    case [C || #{node := N} = C <- Connections, N =:= To] of
        [#{peer := {Ip, Port}, tls_version := Tls, cipher := Cipher,
           verified := Verified, mtu := Mtu, srtt := Srtt}] ->
            [[short(From), " - ", short(To)],
             io_lib:format("~s:~b", [inet:ntoa(Ip), Port]),
             Tls, Cipher, verified(Verified),
             io_lib:format("~b B", [Mtu]), duration(Srtt)];
        Other ->
            failed("~s has no single connection to ~s: ~p", [From, To, Other])
    end.

verified(cookie) -> "cookie";
verified(Other) -> io_lib:format("~p", [Other]).

big(Node) ->
    step("1 GiB as 1 MiB messages to ~s, every byte compared there", [short(Node)]),
    Payload = rand:bytes(?BIG_SIZE),
    Parent = self(),
    {Receiver, Ref} = spawn_monitor(Node, ?MODULE, receive_big,
                                    [Parent, ?BIG_COUNT, Payload]),
    await_ready(Receiver, Ref),
    Started = now_us(),
    %% The sender is suspended when the connection is full: see back-pressure in the README.
    _ = spawn_link(fun() ->
                           lists:foreach(fun(N) -> Receiver ! {big, N, Payload} end,
                                         lists:seq(1, ?BIG_COUNT))
                   end),
    big_progress(Receiver, Ref, Started),
    await_end(Receiver, Ref),
    Took = now_us() - Started,
    Total = ?BIG_COUNT * ?BIG_SIZE,
    clear_progress(),
    line("   ~b messages, ~b bytes in ~s: ~ts",
         [?BIG_COUNT, Total, duration(Took),
          bold(io_lib:format("~.1f MB/s", [Total / Took]))]).

big_progress(Receiver, Ref, Started) ->
    receive
        {Receiver, got, N} ->
            progress(N / ?BIG_COUNT, N * ?BIG_SIZE / max(1, now_us() - Started)),
            case N of
                ?BIG_COUNT -> ok;
                _ -> big_progress(Receiver, Ref, Started)
            end;
        {'DOWN', Ref, _, _, Reason} ->
            failed("the receiver ended: ~p", [Reason])
    after 30000 ->
            failed("nothing arrived for 30 s", [])
    end.

small(Node) ->
    step("~b small messages to ~s, their order checked there", [?SMALL_COUNT, short(Node)]),
    {Receiver, Ref} = spawn_monitor(Node, ?MODULE, receive_small,
                                    [self(), ?SMALL_COUNT]),
    await_ready(Receiver, Ref),
    Started = now_us(),
    lists:foreach(fun(N) -> Receiver ! {small, N} end, lists:seq(1, ?SMALL_COUNT)),
    await_end(Receiver, Ref),
    Took = now_us() - Started,
    line("   in ~s: ~ts",
         [duration(Took),
          bold(io_lib:format("~b messages/s", [?SMALL_COUNT * 1000000 div Took]))]).

round_trips(Node) ->
    step("erpc:call/4 to ~s and back, ~b times", [short(Node), ?CALLS]),
    _ = [erpc:call(Node, ?MODULE, echo, [N]) || N <- lists:seq(1, 200)],
    Times = lists:sort([round_trip(Node, N) || N <- lists:seq(1, ?CALLS)]),
    line("   median ~ts, 99 of 100 within ~s",
         [bold(duration(lists:nth(?CALLS div 2, Times))),
          duration(lists:nth(?CALLS * 99 div 100, Times))]).

round_trip(Node, N) ->
    Started = now_us(),
    N = erpc:call(Node, ?MODULE, echo, [N]),
    now_us() - Started.

kill(Bob, Carol, Pid) ->
    step("kill -9 ~s (os pid ~s); the others notice (net_ticktime is ~b s here)",
         [short(Carol), Pid, net_kernel:get_net_ticktime()]),
    Parent = self(),
    Watchers = [spawn_monitor(N, ?MODULE, watch, [Parent, Carol]) || N <- [node(), Bob]],
    lists:foreach(fun({Watcher, Ref}) -> await_ready(Watcher, Ref) end, Watchers),
    Started = erlang:system_time(millisecond),
    "" = os:cmd("kill -9 " ++ Pid),
    lists:foreach(
      fun({Watcher, Ref}) ->
              receive
                  {down, On, Carol, Reason, At} when On =:= node(Watcher) ->
                      line("   ~s: nodedown, reason ~ts, after ~.1f s",
                           [short(On), bold(io_lib:format("~p", [Reason])),
                            (At - Started) / 1000]);
                  {'DOWN', Ref, _, _, Reason} ->
                      failed("the watcher on ~s ended: ~p", [node(Watcher), Reason])
              after 20000 ->
                      failed("~s did not notice within 20 s", [node(Watcher)])
              end
      end, Watchers),
    [Bob] = nodes(),
    line("   ~s and ~s go on: ~p", [short(node()), short(Bob),
                                   erpc:call(Bob, ?MODULE, echo, [still_here])]).

%%% Waiting

await_ready(Pid, Ref) ->
    receive
        {Pid, ready} -> ok;
        {'DOWN', Ref, _, _, Reason} -> failed("~p ended: ~p", [Pid, Reason])
    after 10000 -> failed("~p is not ready after 10 s", [Pid])
    end.

await_end(Pid, Ref) ->
    receive
        {'DOWN', Ref, _, _, normal} -> ok;
        {'DOWN', Ref, _, _, Reason} -> failed("~p ended: ~p", [Pid, Reason])
    after 30000 -> failed("~p has not ended after 30 s", [Pid])
    end.

wait(Condition, Complaint) ->
    wait(Condition, Complaint, 200).

wait(_Condition, Complaint, 0) ->
    failed("~s", [Complaint]);
wait(Condition, Complaint, Tries) ->
    case Condition() of
        true -> ok;
        _ -> timer:sleep(50), wait(Condition, Complaint, Tries - 1)
    end.

-spec failed(string(), [term()]) -> no_return().
failed(Format, Args) ->
    throw({failed, io_lib:format(Format, Args)}).

now_us() ->
    erlang:monotonic_time(microsecond).

%%% Writing

step(Text) -> step(Text, []).

step(Format, Args) ->
    line("~n~ts", [bold(io_lib:format("-- " ++ Format, Args))]).

line(Format, Args) ->
    io:format(Format ++ "~n", Args).

short(Node) ->
    hd(string:split(atom_to_list(Node), "@")).

duration(Us) when Us < 1000 -> io_lib:format("~b us", [Us]);
duration(Us) when Us < 1000000 -> io_lib:format("~.2f ms", [Us / 1000]);
duration(Us) -> io_lib:format("~.2f s", [Us / 1000000]).

%% The bar is drawn over itself on a terminal; elsewhere a line every quarter.
progress(Part, Rate) ->
    Width = 40,
    Full = round(Part * Width),
    Bar = io_lib:format("   [~ts~ts] ~3b %  ~.1f MB/s   ",
                        [lists:duplicate(Full, $#), lists:duplicate(Width - Full, $.),
                         round(Part * 100), Rate]),
    case terminal() of
        true -> io:format("\r~ts", [Bar]);
        false when Part * 4 == trunc(Part * 4) -> line("~ts", [Bar]);
        false -> ok
    end.

clear_progress() ->
    case terminal() of
        true -> io:nl();
        false -> ok
    end.

table(Head, Rows0) ->
    Rows = [[unicode:characters_to_list(Cell) || Cell <- Row] || Row <- [Head | Rows0]],
    Widths = [lists:max([length(lists:nth(N, Row)) || Row <- Rows])
              || N <- lists:seq(1, length(Head))],
    Rule = lists:join("-+-", [lists:duplicate(W, $-) || W <- Widths]),
    [HeadRow | Body] = [lists:join(" | ", [string:pad(Cell, W)
                                           || {Cell, W} <- lists:zip(Row, Widths)])
                        || Row <- Rows],
    line("   ~ts~n   ~ts", [HeadRow, Rule]),
    lists:foreach(fun(Row) -> line("   ~ts", [Row]) end, Body).

%% scripts/demo says whether its output is a terminal: ours may be a pipe to it.
terminal() ->
    os:getenv("QUIC_DIST_DEMO_TERMINAL") =:= "1".

bold(Text) -> style("1", Text).
green(Text) -> style("32", Text).
red(Text) -> style("31", Text).

style(Code, Text) ->
    case terminal() of
        true -> ["\e[", Code, "m", Text, "\e[0m"];
        false -> Text
    end.
