%% @doc The second life of a connection's controller (`quic_dist_controller'):
%% it takes packets from the VM and gives them to the engine, and from the engine
%% and gives them to the VM, until the connection ends.
%%
%% One process does both, as a port would. None of the calls waits, and they take
%% turns, so neither direction can keep the other one from going on. And where
%% messages go to and fro, the process that has handed one to the VM is there for
%% the answer, most often on the same scheduler.
%%
%% For a moment after something has come it asks the engine for more, again and
%% again, and lets others run in between: it takes the turns of the event thread,
%% which rests meanwhile (`quic_dist_nif:data_take/1'). So a message that is
%% answered at once costs no wake-up of a thread.
-module(quic_dist_traffic).

-export([start/2, loop/1]).

%% What one call of the engine takes at most: enough to fill the largest
%% packet of a GSO batch, little enough not to starve ticks and calls.
-define(BATCH_BYTES, 262144).
-define(BATCH_PACKETS, 64).

%% How long to wait for the VM to end us.
-define(DEATH_ROW_MS, 5000).

%% How long discovery may take to say where a silent node is, when it is time to
%% ask it again.
-define(ASKING_MS, 10000).

-record(state, {link :: quic_dist_controller:link(),
                %% the link's
                conn :: quic_dist_nif:connection(),
                dhandle :: erlang:dist_handle(),
                %% who of this node sends
                senders :: quic_dist_senders:senders(),
                %% the process that asks discovery for the node
                asking :: undefined | {pid(), reference(), Since :: integer()},
                %% the engine's queue is full
                busy = false :: boolean(),
                %% there may be more to take from the engine, which tells nothing
                %% until it has said that there is not
                taking = false :: boolean(),
                %% this process asks the engine for more; it is one among the
                %% others meanwhile, for it is always runnable
                asks = false :: boolean()}).

%% @doc What the controller does from now on.
-spec start(quic_dist_controller:link(), erlang:dist_handle()) -> no_return().
start(#{conn := Conn} = Link, DHandle) ->
    %% As a port's I/O, traffic does not wait its turn among the processes that
    %% are runnable: a busy node would else be a slow one, and then a dead one.
    process_flag(priority, high),
    erlang:dist_ctrl_get_data_notification(DHandle),
    loop(#state{link = Link, conn = Conn, dhandle = DHandle,
                senders = quic_dist_senders:new(Conn)}).

%% Of these one is always due, or the connection is ending: a `dist_data' (from
%% the VM after dist_ctrl_get_data_notification/1, or from ourselves when there
%% is more), or a `writable' while busy. And a `quic_dist_packets', unless `taking'.
%% @private
-spec loop(#state{}) -> no_return().
loop(#state{conn = Conn, link = Link, taking = Taking} = State) ->
    receive
        {quic_dist_packets, Packets} ->
            put_packets(State#state.dhandle, Packets),
            ?MODULE:loop(State#state{taking = true});
        dist_data ->
            ?MODULE:loop(input_too(output(State)));
        {quic_dist, Conn, writable} when State#state.busy ->
            ?MODULE:loop(input_too(output(State#state{busy = false})));
        {quic_dist, Conn, {low, Process}} ->
            Senders = quic_dist_senders:low(Process, State#state.senders),
            ?MODULE:loop(State#state{senders = Senders});
        tick ->
            %% When it fails, `closed' is on its way.
            _ = quic_dist_nif:tick(Conn),
            ?MODULE:loop(State);
        {quic_dist_controller, From, Request} ->
            ?MODULE:loop(called(Request, From, State));
        {quic_dist, Conn, {moved, From, To}} ->
            Moved = quic_dist_controller:moved(From, To, Link),
            ?MODULE:loop(State#state{link = Moved});
        {quic_dist, Conn, {silent, Asked}} ->
            ?MODULE:loop(seek(Asked, State));
        {'DOWN', _, process, Asking, _}
          when Asking =:= element(1, State#state.asking) ->
            ?MODULE:loop(State#state{asking = undefined});
        {send, From, Ref, Packet} when is_pid(From), not State#state.busy ->
            %% What OTP's distribution_SUITE asks of a controller that is a
            %% process: a packet of its own making, where a port would take
            %% port_command/2. While the queue is full the caller waits.
            Result = quic_dist_nif:data_send(Conn, [Packet], []),
            From ! {Ref, Result},
            ?MODULE:loop(State#state{busy = Result =:= busy});
        {quic_dist, Conn, {closed, Reason}} ->
            ok = quic_dist_senders:release(State#state.senders),
            #{node := Node, peer := Peer} = Link,
            quic_dist_log:closed(Node, Peer, Reason),
            %% What had arrived before is the VM's.
            ok = take_rest(Conn, State#state.dhandle),
            exit(quic_dist_log:exit_reason(Reason));
        {quic_dist, Conn, {control, _AfterHandshake}} ->
            ok = quic_dist_nif:close(Conn, <<"control message after the handshake">>),
            ?MODULE:loop(State);
        _Unexpected when not State#state.busy ->
            ?MODULE:loop(State)
    after case Taking of true -> 0; false -> infinity end ->
        ?MODULE:loop(input(State))
    end.

called(Request, From, #state{link = Link} = State) ->
    State#state{link = quic_dist_controller:common_call(Request, From, Link)}.

%% The node is silent where it is known to be. One asks at a time: discovery may
%% take its time, which is why this process does not.
seek(Asked, #state{asking = undefined, conn = Conn, link = Link} = State) ->
    #{family := Family, node := Node, peer := Peer} = Link,
    {Pid, Monitor} = quic_dist_discovery:seek(Conn, Family, Node, Peer, Asked),
    State#state{asking = {Pid, Monitor, erlang:monotonic_time(millisecond)}};
seek(Asked, #state{asking = {Pid, Monitor, Since}} = State) ->
    case erlang:monotonic_time(millisecond) - Since > ?ASKING_MS of
        true ->
            erlang:demonitor(Monitor, [flush]),
            exit(Pid, kill),
            seek(Asked, State#state{asking = undefined});
        false ->
            State
    end.

%% One batch, then back to the mailbox, so that ticks and calls get their turn.
output(#state{busy = true} = State) ->
    State;
output(#state{conn = Conn, dhandle = DHandle, senders = Senders} = State) ->
    {Rest, Room, Packets, Senders1} =
        take(DHandle, ?BATCH_PACKETS, ?BATCH_BYTES, [], Senders),
    {Waiting, Senders2} = quic_dist_senders:waiting(Senders1),
    State1 = State#state{senders = Senders2},
    case send_packets(Conn, Room, Packets, Waiting) of
        ok when Rest =:= none ->
            erlang:dist_ctrl_get_data_notification(DHandle),
            State1;
        ok ->
            self() ! dist_data,
            State1;
        busy ->
            State1#state{busy = true,
                         senders = quic_dist_senders:was_full(Senders2)};
        {error, closed} ->
            %% The `closed' message will end the connection.
            State1#state{busy = true}
    end.

send_packets(_Conn, _Room, [], []) ->
    ok;
send_packets(Conn, Room, Packets, Waiting) when Room < -?BATCH_BYTES ->
    %% The last one is a whole message of any size: it made this node dial.
    quic_dist_nif:data_send_large(Conn, lists:reverse(Packets), Waiting);
send_packets(Conn, _Room, Packets, Waiting) ->
    quic_dist_nif:data_send(Conn, lists:reverse(Packets), Waiting).

take(DHandle, Count, Room, Packets, Senders) when Count > 0, Room > 0 ->
    case erlang:dist_ctrl_get_data(DHandle) of
        {Size, Packet} ->
            take(DHandle, Count - 1, Room - Size, [Packet | Packets],
                 quic_dist_senders:packet(Packet, Senders));
        none ->
            {none, Room, Packets, Senders}
    end;
take(_DHandle, _Count, Room, Packets, Senders) ->
    {more, Room, Packets, Senders}.

%% There may always be more to send, or always more to take: they take turns.
input_too(#state{taking = true} = State) ->
    input(State);
input_too(State) ->
    State.

%% Each call also says that the packets before are with the VM. While it asks, what
%% is woken by them runs before the next one.
input(#state{conn = Conn, dhandle = DHandle} = State) ->
    case quic_dist_nif:data_take(Conn) of
        [] ->
            asks(false, State#state{taking = false});
        again ->
            others_run(asks(true, State));
        {again, Packets} ->
            put_packets(DHandle, Packets),
            others_run(asks(true, State));
        [_ | _] = Packets ->
            put_packets(DHandle, Packets),
            asks(false, State)
    end.

asks(Asks, #state{asks = Asks} = State) ->
    State;
asks(true, State) ->
    process_flag(priority, normal),
    State#state{asks = true};
asks(false, State) ->
    process_flag(priority, high),
    State#state{asks = false}.

others_run(State) ->
    erlang:yield(),
    State.

%% The connection has ended: nobody asks any more.
take_rest(Conn, DHandle) ->
    case quic_dist_nif:data_take(Conn) of
        [] ->
            ok;
        [_ | _] = Packets ->
            case lists:all(fun(Packet) -> put_packet(DHandle, Packet) end,
                           Packets) of
                true -> take_rest(Conn, DHandle);
                false -> ok
            end
    end.

put_packets(DHandle, [Packet | Packets]) ->
    case put_packet(DHandle, Packet) of
        true -> put_packets(DHandle, Packets);
        false -> death_row()
    end;
put_packets(_DHandle, []) ->
    ok.

%% Bad data makes the VM end this connection; then, and when the connection has
%% just ended otherwise, the handle is no longer valid.
put_packet(DHandle, Packet) ->
    try
        ok =:= erlang:dist_ctrl_put_data(DHandle, Packet)
    catch
        error:_ -> false
    end.

-spec death_row() -> no_return().
death_row() ->
    receive after ?DEATH_ROW_MS -> exit(connection_closed) end.
