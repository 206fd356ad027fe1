%% @doc The processes of this node that send large messages to one other node:
%% each waits for its own, and nobody for another's.
%%
%% The VM has one queue for a node. When `+zdbbl' bytes are in it, it suspends
%% whoever sends to that node, however little, until it has room again; who had
%% much to send is there first, and fills it anew. So that queue is never to be
%% full for long: everything is taken out of it at once, and those whose messages
%% fill it, messages that the VM cuts into fragments (of 64 KiB), are kept
%% suspended until their own stream has little left of what they sent. The others' messages
%% go past, on streams of their own.
%%
%% Only who lets the VM suspend it is suspended here: within the last ten seconds it
%% has been seen so, when a fragment of its own was taken out of a full queue. So no
%% process that always sends with `nosuspend', or has the flag `async_dist', is. Of
%% messages that are much shorter than `+zdbbl' one sees that only when the engine
%% has had no room for a while. The VM counts who suspends whom, and lets all go on when the controller, which does this, ends
%% (`erlang:suspend_process/2').
-module(quic_dist_senders).

-export([new/1, was_full/1, packet/2, waiting/1, low/2, release/1]).

-export_type([senders/0, process/0]).

-type process() :: {Id :: non_neg_integer(), Serial :: non_neg_integer()}.
%% The second and third number of a pid of this node.

%% So many messages under way, suspended processes, and processes that have been
%% seen suspended by the VM are remembered. Others send as if this were not here.
-define(MAX_SENDERS, 1024).
%% What the VM puts into a fragment.
-define(FRAGMENT, 65536).
%% Above this many bytes that the engine has queued, on all streams, who sends
%% more waits.
-define(ENOUGH, 524288).
%% How long it is remembered that the VM has suspended somebody.
-define(REMEMBERED_MS, 10000).

-record(senders, {conn :: quic_dist_nif:connection(),
                  %% +zdbbl
                  limit :: pos_integer(),
                  %% the VM's queue was not taken from for a while
                  full = false :: boolean(),
                  %% whose fragments these are, until the last one
                  messages = #{} :: #{Sequence :: non_neg_integer() => process()},
                  %% who has been seen suspended by the VM
                  seen = #{} :: #{process() => Until :: integer()},
                  %% who has been suspended since waiting/1, or was and had sent
                  %% what came out of the queue since
                  waiting = [] :: [process()],
                  suspended = #{} :: #{process() => pid()}}).

-opaque senders() :: #senders{}.

%% @doc Nobody has sent anything.
-spec new(quic_dist_nif:connection()) -> senders().
new(Conn) ->
    #senders{conn = Conn, limit = erlang:system_info(dist_buf_busy_limit)}.

%% @doc The engine had no room: so the VM's queue may be full.
-spec was_full(senders()) -> senders().
was_full(Senders) ->
    Senders#senders{full = true}.

%% @doc A packet that was taken out of the VM's queue.
-spec packet(iodata(), senders()) -> senders().
packet([<<131, 69, Sequence:64, Fragments:64, _/binary>> | _] = Packet,
       #senders{messages = Messages, full = Full, limit = Limit} = Senders)
  when Fragments > 1 ->
    case quic_dist_nif:packet_sender(Packet) of
        none ->
            Senders;
        Process ->
            %% The last fragment of one whose sender was killed never comes.
            Known = case map_size(Messages) < ?MAX_SENDERS of
                        true -> Messages;
                        false -> #{}
                    end,
            fragment(Process, Full orelse Fragments * ?FRAGMENT >= Limit,
                     Senders#senders{messages = Known#{Sequence => Process}})
    end;
packet([<<131, 70, Sequence:64, Number:64, _/binary>> | _],
       #senders{messages = Messages, full = Full} = Senders) ->
    case Messages of
        #{Sequence := Process} when Number > 1 ->
            fragment(Process, Full, Senders);
        #{Sequence := Process} ->
            fragment(Process, Full, Senders#senders{
                                messages = maps:remove(Sequence, Messages)});
        _ ->
            Senders
    end;
packet(_Packet, Senders) ->
    Senders.

%% Look: the VM may have suspended the sender. To ask costs a signal to it.
fragment(Process, Look, #senders{suspended = Suspended} = Senders)
  when not is_map_key(Process, Suspended), map_size(Suspended) < ?MAX_SENDERS ->
    Now = erlang:monotonic_time(millisecond),
    case Senders of
        #senders{seen = #{Process := Until}} when Until > Now ->
            enough(Process, Senders);
        _ when Look ->
            case process_info(pid(Process), status) of
                {status, suspended} ->
                    enough(Process, seen(Process, Now + ?REMEMBERED_MS, Senders));
                _ ->
                    Senders
            end;
        _ ->
            Senders
    end;
fragment(Process, _Look, #senders{suspended = Suspended, waiting = Waiting} = Senders)
  when is_map_key(Process, Suspended) ->
    %% It had sent this before: until little is left of this, too, it waits.
    case lists:member(Process, Waiting) of
        true -> Senders;
        false -> Senders#senders{waiting = [Process | Waiting]}
    end;
fragment(_Process, _Look, Senders) ->
    Senders.

enough(Process, #senders{conn = Conn} = Senders) ->
    case quic_dist_nif:stats(Conn) of
        {ok, _, _, Pending} when Pending > ?ENOUGH ->
            suspend(Process, pid(Process), Senders);
        _ ->
            Senders
    end.

seen(Process, Until, #senders{seen = Seen} = Senders)
  when map_size(Seen) < ?MAX_SENDERS; is_map_key(Process, Seen) ->
    Senders#senders{seen = Seen#{Process => Until}};
seen(Process, Until, Senders) ->
    Senders#senders{seen = #{Process => Until}}.

suspend(Process, Pid, #senders{suspended = Suspended, waiting = Waiting} = Senders) ->
    try
        true = erlang:suspend_process(Pid, [asynchronous]),
        Senders#senders{suspended = Suspended#{Process => Pid},
                        waiting = [Process | Waiting]}
    catch
        %% it has ended
        error:badarg -> Senders
    end.

pid({Id, Serial}) ->
    list_to_pid("<0." ++ integer_to_list(Id) ++ "." ++ integer_to_list(Serial)
                ++ ">").

%% @doc Who waits for what has been taken out of the queue since it was last asked:
%% `quic_dist_nif:data_send/3' is to know with the packets.
-spec waiting(senders()) -> {[process()], senders()}.
waiting(#senders{waiting = Waiting} = Senders) ->
    {Waiting, Senders#senders{waiting = [], full = false}}.

%% @doc The engine says that little is left of what this one has sent.
-spec low(process(), senders()) -> senders().
low(Process, #senders{suspended = Suspended} = Senders) ->
    case maps:take(Process, Suspended) of
        {Pid, Rest} ->
            resume(Pid),
            Senders#senders{suspended = Rest};
        error ->
            Senders
    end.

%% @doc The connection ends: all go on.
-spec release(senders()) -> ok.
release(#senders{suspended = Suspended}) ->
    maps:foreach(fun(_Process, Pid) -> resume(Pid) end, Suspended).

%% badarg: it has ended
resume(Pid) ->
    try erlang:resume_process(Pid)
    catch error:badarg -> true
    end.
