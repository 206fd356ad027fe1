%% @doc The second life of a connection's controller (`quic_dist_controller'):
%% it takes packets from the VM and gives them to the engine, until the
%% connection ends.
-module(quic_dist_output).

-export([start/2, output_loop/1, ending_loop/2]).

%% What one call of the engine takes at most: enough to fill the largest
%% packet of a GSO batch, little enough not to starve ticks and calls.
-define(BATCH_BYTES, 262144).
-define(BATCH_PACKETS, 64).

%% How long the input handler may take to deliver what had arrived before the
%% connection ended.
-define(ENDING_MS, 5000).

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
                busy = false :: boolean()}).

%% @doc What the controller does from now on.
-spec start(quic_dist_controller:link(), erlang:dist_handle()) -> no_return().
start(#{conn := Conn} = Link, DHandle) ->
    %% As a port's I/O, traffic does not wait its turn among the processes that
    %% are runnable: a busy node would else be a slow one, and then a dead one.
    process_flag(priority, high),
    erlang:dist_ctrl_get_data_notification(DHandle),
    output_loop(#state{link = Link, conn = Conn, dhandle = DHandle,
                       senders = quic_dist_senders:new(Conn)}).

%% Of these one is always due, or the connection is ending: a `dist_data' (from
%% the VM after dist_ctrl_get_data_notification/1, or from ourselves when there
%% is more), or a `writable' while busy.
%% @private
-spec output_loop(#state{}) -> no_return().
output_loop(#state{conn = Conn, link = Link} = State) ->
    receive
        dist_data ->
            ?MODULE:output_loop(output(State));
        {quic_dist, Conn, writable} when State#state.busy ->
            ?MODULE:output_loop(output(State#state{busy = false}));
        {quic_dist, Conn, {low, Process}} ->
            Senders = quic_dist_senders:low(Process, State#state.senders),
            ?MODULE:output_loop(State#state{senders = Senders});
        tick ->
            %% When it fails, `closed' is on its way.
            _ = quic_dist_nif:tick(Conn),
            ?MODULE:output_loop(State);
        {quic_dist_controller, From, Request} ->
            ?MODULE:output_loop(called(Request, From, State));
        {quic_dist, Conn, {moved, From, To}} ->
            Moved = quic_dist_controller:moved(From, To, Link),
            ?MODULE:output_loop(State#state{link = Moved});
        {quic_dist, Conn, {silent, Asked}} ->
            ?MODULE:output_loop(seek(Asked, State));
        {'DOWN', _, process, Asking, _}
          when Asking =:= element(1, State#state.asking) ->
            ?MODULE:output_loop(State#state{asking = undefined});
        {send, From, Ref, Packet} when is_pid(From), not State#state.busy ->
            %% What OTP's distribution_SUITE asks of a controller that is a
            %% process: a packet of its own making, where a port would take
            %% port_command/2. While the queue is full the caller waits.
            Result = quic_dist_nif:data_send(Conn, [Packet], []),
            From ! {Ref, Result},
            ?MODULE:output_loop(State#state{busy = Result =:= busy});
        {quic_dist, Conn, {closed, Reason}} ->
            ok = quic_dist_senders:release(State#state.senders),
            #{node := Node, peer := Peer} = Link,
            quic_dist_log:closed(Node, Peer, Reason),
            _ = erlang:start_timer(?ENDING_MS, self(), ending),
            ?MODULE:ending_loop(State, quic_dist_log:exit_reason(Reason));
        {quic_dist_input, drained} ->
            %% It gets `closed' just before we do.
            receive
                {quic_dist, Conn, {closed, Reason}} ->
                    quic_dist_controller:end_with(Reason, Link)
            end;
        {quic_dist, Conn, {control, _AfterHandshake}} ->
            ok = quic_dist_nif:close(Conn, <<"control message after the handshake">>),
            ?MODULE:output_loop(State);
        _Unexpected when not State#state.busy ->
            ?MODULE:output_loop(State)
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

%% The input handler gets the same `closed' message, after the last packets
%% that had arrived, and says when it has handed them to the VM. Our end takes
%% it along.
%% @private
-spec ending_loop(#state{}, term()) -> no_return().
ending_loop(State, Reason) ->
    receive
        {quic_dist_input, drained} ->
            exit(Reason);
        {timeout, _, ending} ->
            exit(Reason);
        {quic_dist_controller, From, Request} ->
            ?MODULE:ending_loop(called(Request, From, State), Reason);
        Other when element(1, Other) =/= quic_dist_input ->
            ?MODULE:ending_loop(State, Reason)
    end.
