%% When this machine stood still. A virtual machine may be stopped for a second by its host; then every time that a suite measures is a
%% second longer, and it was not what is under test. A process of the Common Test node looks at the clock every few milliseconds; what it
%% sleeps longer than that, by far, nobody else on this machine has had either: a busy machine wakes it in time.
-module(quic_dist_test_clock).

-export([start/0, now_ms/0, took/1, stalled/1, longest/1]).

-define(EVERY_MS, 10).
%% Many times what it takes on two processors that are fully in use (they are seen to take 100).
-define(LATE_MS, 200).
-define(KEPT, 1000).

%% Before anything is measured. It stays.
-spec start() -> ok.
start() ->
    case whereis(?MODULE) of
        undefined ->
            Caller = self(),
            {Pid, Monitor} = spawn_opt(fun() ->
                true = register(?MODULE, self()),
                Caller ! {self(), started},
                tick(now_ms(), [])
            end, [monitor, {priority, max}]),
            receive
                {Pid, started} -> erlang:demonitor(Monitor, [flush]), ok;
                {'DOWN', Monitor, process, Pid, Why} -> error(Why)
            end;
        _ -> ok
    end.

-spec now_ms() -> integer().
now_ms() -> erlang:monotonic_time(millisecond).

%% How long it is since then, without the time that the machine stood still.
-spec took(Since :: integer()) -> non_neg_integer().
took(Since) -> now_ms() - Since - stalled(Since).

%% For how long it stood still since then, in all.
-spec stalled(Since :: integer()) -> non_neg_integer().
stalled(Since) -> lists:sum(stalls(Since)).

%% At a stretch.
-spec longest(Since :: integer()) -> non_neg_integer().
longest(Since) -> lists:max([0 | stalls(Since)]).

stalls(Since) ->
    Ref = erlang:monitor(process, ?MODULE),
    ?MODULE ! {stalls, Since, self(), Ref},
    receive
        {Ref, Stalls} -> erlang:demonitor(Ref, [flush]), Stalls;
        {'DOWN', Ref, process, _, Why} -> error({clock, Why})
    end.

tick(Last, Stalls) ->
    receive
        {stalls, Since, From, Ref} ->
            Known = noted(now_ms(), Last, Stalls),
            From ! {Ref, [Late || {At, Late} <- Known, At >= Since]},
            tick(now_ms(), Known)
    after ?EVERY_MS ->
        Now = now_ms(),
        tick(Now, noted(Now, Last, Stalls))
    end.

noted(Now, Last, Stalls) when Now - Last - ?EVERY_MS > ?LATE_MS ->
    lists:sublist([{Now, Now - Last - ?EVERY_MS} | Stalls], ?KEPT);
noted(_, _, Stalls) -> Stalls.
