%% What the cases of order_SUITE are made of: the processes at either end that number what they send and check what they get.
%% All of it runs on the nodes under test.
-module(quic_dist_order_lib).

-export([parallel/2, rounds/2, deadline/0, next/0, name/2, to_all_names/5, exchange/3, relay/1, watch_input/1, packets_of/2]).
%% bodies of processes
-export([receiver/2, host/1, newborn/2, talker/2, obedient/2, trapping/3]).

-define(LIB, quic_dist_test_lib).

%% For one message. Many times what any proxy holds a stream for; a signal that got lost takes a wrong router this long to show.
-spec deadline() -> timeout().
deadline() -> 15000.

%%% Doing and expecting

%% Many processes that do the same; the first that fails ends them all. Each gets its number, and traps exits.
-spec parallel(pos_integer(), fun((pos_integer()) -> term())) -> ok.
parallel(Count, Fun) ->
    Workers = [spawn_monitor(fun() -> process_flag(trap_exit, true), Fun(N) end) || N <- lists:seq(1, Count)],
    await_workers(Workers, Workers).

await_workers([], _) -> ok;
await_workers(Running, All) ->
    receive
        {'DOWN', Monitor, process, Pid, normal} ->
            await_workers(Running -- [{Pid, Monitor}], All);
        {'DOWN', _, process, _, Reason} ->
            [exit(P, kill) || {P, _} <- All],
            error({a_worker_failed, Reason})
    end.

-spec rounds(pos_integer(), fun((pos_integer()) -> term())) -> ok.
rounds(Count, Fun) -> lists:foreach(Fun, lists:seq(1, Count)).

%% The next message, whatever it is.
-spec next() -> term().
next() ->
    Deadline = deadline(),
    receive Message -> Message after Deadline -> error({deadline, self()}) end.

expect(Expected) ->
    case next() of
        Expected -> ok;
        Other -> error({out_of_order, Other, Expected})
    end.

%% A name for worker N.
-spec name(atom(), pos_integer() | string()) -> atom().
name(Tag, N) -> list_to_atom(lists:concat(["order_", Tag, "_", N])).

%%% One process, several names

%% A receiver checks that numbers come one after the other, and says so when it is asked in the same way.
-spec receiver(pid(), atom()) -> no_return().
receiver(Owner, Name) ->
    register(Name, self()),
    Owner ! {ready, self(), alias()},
    numbers(Owner, 1).

numbers(Owner, Expected) ->
    receive
        {number, Expected} -> numbers(Owner, Expected + 1);
        {number, Other} -> Owner ! {out_of_order, Other, {expected, Expected}};
        {until, Last} when Last =:= Expected - 1 -> Owner ! {in_order, Last}, numbers(Owner, Expected);
        {until, Last} -> Owner ! {out_of_order, {until, Last}, {expected, Expected}}
    end.

%% Numbers to a receiver by its three names in turn, in rounds that are far enough apart to meet different holds.
-spec to_all_names(pid(), atom(), node(), reference(), pos_integer()) -> ok.
to_all_names(Receiver, Name, Node, Alias, Rounds) ->
    Addresses = {Receiver, {Name, Node}, Alias},
    rounds(Rounds, fun(Round) ->
        [element(1 + (I + Round) rem 3, Addresses) ! {number, (Round - 1) * 9 + I} || I <- lists:seq(1, 9)],
        element(1 + Round rem 3, Addresses) ! {until, Round * 9},
        expect({in_order, Round * 9})
    end).

%% Passes a number on to a receiver, and the next number to the next process of its ring.
-spec relay(pid()) -> no_return().
relay(Receiver) -> receive {next, Next} -> relay(Receiver, Next) end.

relay(Receiver, Next) ->
    receive {number, I, Count, Owner} ->
        Receiver ! {number, I},
        case I of
            Count -> Owner ! all_sent;
            _ -> Next ! {number, I + 1, Count, Owner}
        end,
        relay(Receiver, Next)
    end.

%%% Processes that do as they are told

%% Starts servers on its node, without any signal but messages between two pids.
-spec host(pid()) -> no_return().
host(Owner) ->
    receive {start, Name} ->
        {ok, Pid} = quic_dist_test_server:start(Name),
        Owner ! {started, Pid}
    end,
    host(Owner).

%% Says that it is there, and is gone.
-spec newborn([pid() | reference() | {atom(), node()}], term()) -> no_return().
newborn(Owners, Term) ->
    [Owner ! {born, self(), Term} || Owner <- Owners],
    exit({dead, Term}).

%% Messages, then an end with a reason.
-spec talker([pid() | reference() | {atom(), node()}], term()) -> no_return().
talker(Owners, Messages) ->
    receive {talk, Why} ->
        [Owner ! {I, Message} || {I, Message} <- lists:zip(lists:seq(1, length(Messages)), Messages),
                                 Owner <- [lists:nth(1 + I rem length(Owners), Owners)]],
        exit(Why)
    end.

%% Obeys whoever has its name or its pid.
-spec obedient(pid(), atom()) -> no_return().
obedient(Owner, Name) ->
    Name =:= none orelse register(Name, self()),
    Owner ! {ready, self()},
    obey(Owner).

obey(Owner) ->
    receive
        {exit, Why} -> exit(Why);
        leader -> Owner ! {leader, group_leader()}, obey(Owner)
    end.

%% What it gets, as message or as exit signal, has to be numbered one after the other.
-spec trapping(pid(), atom(), pos_integer()) -> no_return().
trapping(Owner, Name, Count) ->
    process_flag(trap_exit, true),
    register(Name, self()),
    Owner ! {ready, self()},
    trapped(Owner, Count).

trapped(Owner, Count) ->
    Deadline = deadline(),
    Got = [receive {'EXIT', Owner, {number, I}} -> I; {number, I} -> I after Deadline -> missing end || _ <- lists:seq(1, Count)],
    Owner ! {got, Got},
    trapped(Owner, Count).

%%% Large messages

%% Messages of many fragments, a small one behind each; two processes do this to each other.
-spec exchange(pid(), pos_integer(), pos_integer()) -> ok.
exchange(Other, N, Count) ->
    Large = fun(I) -> binary:copy(<<N, I>>, 100000 + 10000 * N) end,
    [begin Other ! {large, I, Large(I)}, Other ! {small, I} end || I <- lists:seq(1, Count)],
    [begin expect({large, I, Large(I)}), expect({small, I}) end || I <- lists:seq(1, Count)],
    Other ! finished,
    expect(finished),
    unlink(Other),
    ok.

%%% The packets that a node gets

%% Keeps what the controller of the connection to Node gives to the VM.
-spec watch_input(node()) -> pid().
watch_input(Node) ->
    #{connections := Connections} = quic_dist:info(),
    [Controller] = [C || #{node := N, controller := C} <- Connections, N =:= Node],
    Caller = self(),
    Watch = spawn(fun() ->
        1 = erlang:trace_pattern({erlang, dist_ctrl_put_data, 2}, true, []),
        1 = erlang:trace(Controller, true, [call]),
        Caller ! {self(), watching},
        absorb([], Controller)
    end),
    Deadline = deadline(),
    receive {Watch, watching} -> Watch after Deadline -> error(deadline) end.

absorb(Packets, Controller) ->
    receive
        {trace, Controller, call, {erlang, dist_ctrl_put_data, [_, Packet]}} -> absorb(Packets ++ [Packet], Controller);
        {packets, From} -> From ! {self(), Packets}, absorb(Packets, Controller);
        {stop, From} -> From ! {self(), stopped};
        _ -> absorb(Packets, Controller)
    end.

%% Count packets and what came after them, when they have come. Ends the watch.
-spec packets_of(pid(), pos_integer()) -> [binary()].
packets_of(Watch, Count) ->
    ?LIB:wait_until(fun() -> length(ask(Watch, packets)) >= Count end, deadline()),
    Packets = ask(Watch, packets),
    stopped = ask(Watch, stop),
    Packets.

ask(Watch, Request) ->
    Watch ! {Request, self()},
    Deadline = deadline(),
    receive {Watch, Answer} -> Answer after Deadline -> error(deadline) end.
