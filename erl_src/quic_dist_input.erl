%% @doc The input handler of one connection: hands distribution packets from
%% the engine to the VM, in order, and gives the receive budget back.
-module(quic_dist_input).

-export([start_link/2]).
-export([init/3, loop/4]).


%% Bytes after which the receive budget gets them back: a small part of the least
%% that receive_budget may be (64 KiB), so that reading never stops for their lack.
-define(GIVE_BACK, 16384).
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
    loop(Controller, Conn, DHandle, 0).

%% `Taken' bytes were handed to the VM and not yet given back to the budget.
%% @private
-spec loop(pid(), quic_dist_nif:connection(), erlang:dist_handle(),
           non_neg_integer()) -> no_return().
loop(Controller, Conn, DHandle, Taken) when Taken >= ?GIVE_BACK ->
    ok = quic_dist_nif:consumed(Conn, Taken),
    loop(Controller, Conn, DHandle, 0);
loop(Controller, Conn, DHandle, Taken) ->
    receive
        {quic_dist_packets, Packets, Bytes} ->
            put_packets(DHandle, Packets),
            ?MODULE:loop(Controller, Conn, DHandle, Taken + Bytes);
        {quic_dist, Conn, {closed, _Reason}} ->
            %% The last message: all that had arrived has been delivered.
            Controller ! {?MODULE, drained},
            death_row();
        _Unexpected ->
            ?MODULE:loop(Controller, Conn, DHandle, Taken)
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
