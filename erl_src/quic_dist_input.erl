%% @doc The input handler of one connection: hands distribution packets from
%% the engine to the VM, in order.
-module(quic_dist_input).

-export([start_link/2]).
-export([init/3, loop/3]).

%% How long to wait for the process that knows the true reason to end us.
-define(DEATH_ROW_MS, 5000).

%% @doc Starts the input handler, linked to the controller that calls. It reads
%% nothing until `quic_dist_nif:set_input/2'.
-spec start_link(quic_dist_nif:connection(), erlang:dist_handle()) -> pid().
start_link(Conn, DHandle) ->
    spawn_opt(?MODULE, init, [self(), Conn, DHandle],
              [link, {priority, high}, {message_queue_data, off_heap},
               {fullsweep_after, 0}]).

%% @private
-spec init(pid(), quic_dist_nif:connection(), erlang:dist_handle()) ->
          no_return().
init(Controller, Conn, DHandle) ->
    loop(Controller, Conn, DHandle).

%% @private
-spec loop(pid(), quic_dist_nif:connection(), erlang:dist_handle()) ->
          no_return().
loop(Controller, Conn, DHandle) ->
    receive
        {quic_dist_packets, Packets} ->
            put_packets(DHandle, Packets),
            take(Conn, DHandle),
            ?MODULE:loop(Controller, Conn, DHandle);
        {quic_dist, Conn, {closed, _Reason}} ->
            %% The last message: all that had arrived has been delivered.
            Controller ! {?MODULE, drained},
            death_row();
        _Unexpected ->
            ?MODULE:loop(Controller, Conn, DHandle)
    end.

%% Each call but the first also says that the packets before are with the VM.
take(Conn, DHandle) ->
    case quic_dist_nif:data_take(Conn) of
        [] ->
            ok;
        Packets ->
            put_packets(DHandle, Packets),
            take(Conn, DHandle)
    end.

put_packets(DHandle, [Packet | Packets]) ->
    %% Bad data makes the VM end this connection; then, and when the
    %% connection has just ended otherwise, the handle is no longer valid.
    try
        erlang:dist_ctrl_put_data(DHandle, Packet)
    catch
        error:_ -> death_row()
    end,
    put_packets(DHandle, Packets);
put_packets(_DHandle, []) ->
    ok.

-spec death_row() -> no_return().
death_row() ->
    receive after ?DEATH_ROW_MS -> exit(connection_closed) end.
