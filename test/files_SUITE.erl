%% Files on streams of the application's own, between real nodes: send_file and recv_file.
-module(files_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([whole_file/1, parts/1, wrong_files/1, not_permitted/1, full_disk/1, cut_short/1, stopped_reader/1, bad_network/1]).

-import(quic_dist_test_files, [path/2, random/3, read/1, on_small_disk/2]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).
-define(MIB, 1048576).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [whole_file, parts, wrong_files, not_permitted, full_disk, cut_short, stopped_reader, bad_network].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> quic_dist_test_files:init_case(Case, Config).
end_per_testcase(_Case, Config) -> quic_dist_test_files:end_case(Config).

%% The other side writes what a stream brings to a file, and tells what recv_file says.
receiver(Node, Path, Opts) ->
    Peer = ?S:acceptor(Node, [{active, false}]),
    fun() ->
        {_, T, passive} = ?S:told(Peer, 10000),
        {T, ?S:call(Peer, fun() -> quic_dist:recv_file(T, Path, Opts) end)}
    end.

whole_file(Config) ->
    Size = 48 * ?MIB + 4711,
    {From, Data} = random("from", Size, Config),
    To = path("to", Config),
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        Receive = receiver(NodeB, To, []),
        {ok, S} = quic_dist:open_stream(NodeB),
        Self = self(),
        true = erlang:garbage_collect(),
        {memory, Before} = process_info(self(), memory),
        Binaries = erlang:memory(binary),
        Tell = fun(Done, Total) ->
            Self ! {progress, Done, Total, erlang:memory(binary)}
        end,
        Sender = spawn_link(fun() -> Self ! {sent, quic_dist:send_file(S, From, [fin], Tell)} end),
        {_, {ok, Size}} = Receive(),
        receive {sent, {ok, Size}} -> ok after 5000 -> error(deadline) end,
        Steps = progress(),
        {Size, Size, _} = lists:last(Steps),
        Done = [D || {D, _, _} <- Steps],
        true = Done =:= lists:usort(Done),
        true = length(Done) > 100,
        %% neither in a heap nor in binaries of the VM's
        true = lists:max([B || {_, _, B} <- Steps]) < Binaries + 2 * ?MIB,
        true = erlang:garbage_collect(),
        {memory, After} = process_info(self(), memory),
        true = After < Before + ?MIB,
        _ = Sender,
        ok
    end, 60000),
    true = read(To) =:= Data.

progress() ->
    receive {progress, Done, Total, Binary} -> [{Done, Total, Binary} | progress()] after 0 -> [] end.

parts(Config) ->
    {From, Data} = random("from", 3 * ?MIB, Config),
    Empty = path("empty", Config),
    ok = file:write_file(Empty, <<>>),
    To = path("to", Config),
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(NodeB, [{active, false}]),
        Call = fun(Fun) -> ?S:call(Peer, Fun) end,
        Open = fun() -> {ok, S} = quic_dist:open_stream(NodeB), S end,
        Told = fun() -> {_, T, passive} = ?S:told(Peer, 5000), T end,
        %% a head, a part of one file, a part of another, and the rest by hand, on one stream
        S1 = Open(),
        Sending = sending(fun() ->
            ok = quic_dist:send(S1, <<"head">>),
            {ok, 1000} = quic_dist:send_file(S1, From, [{offset, 500}, {length, 1000}]),
            {ok, 0} = quic_dist:send_file(S1, Empty, []),
            {ok, 2000000} = quic_dist:send_file(S1, list_to_binary(From), [{length, 2000000}, {fin, false}]),
            ok = quic_dist:send(S1, <<"tail">>, true)
        end),
        T1 = Told(),
        {ok, <<"head">>} = Call(fun() -> quic_dist:recv(T1, 4) end),
        {ok, 1000} = Call(fun() -> quic_dist:recv_file(T1, To, [{length, 1000}]) end),
        {ok, 0} = Call(fun() -> quic_dist:recv_file(T1, To, [{length, 0}, {offset, 1000}]) end),
        {ok, 2000000} = Call(fun() -> quic_dist:recv_file(T1, To, [{length, 2000000}, {offset, 900}]) end),
        {ok, <<"tail">>} = Call(fun() -> quic_dist:recv(T1, 0) end),
        ok = ended(Sending),
        true = file:read_file(To) =:= {ok, <<(binary:part(Data, 500, 900))/binary, (binary:part(Data, 0, 2000000))/binary>>},
        %% nothing at all
        [begin
             S = Open(),
             {ok, 0} = quic_dist:send_file(S, Path, [fin | Opts]),
             T = Told(),
             {ok, 0} = Call(fun() -> quic_dist:recv_file(T, To, []) end),
             {ok, <<>>} = file:read_file(To)
         end || {Path, Opts} <- [{Empty, []}, {From, [{length, 0}]}, {From, [{offset, 9 * ?MIB}]}]],
        %% progress at the receiver, with and without a known end
        [begin
             S = Open(),
             Sends = sending(fun() -> {ok, 700000} = quic_dist:send_file(S, From, [{length, 700000}, fin]) end),
             T = Told(),
             Seen = Call(fun() ->
                 Self = self(),
                 {ok, 700000} = quic_dist:recv_file(T, To, Opts, fun(D, All) -> Self ! {seen, D, All} end),
                 (fun Take() -> receive {seen, D, All} -> [{D, All} | Take()] after 0 -> [] end end)()
             end),
             ok = ended(Sends),
             {700000, Total} = lists:last(Seen),
             true = length(Seen) > 1
         end || {Opts, Total} <- [{[], unknown}, {[{length, 700000}], 700000}]],
        %% several at once
        Many = [sending(fun() ->
            S = Open(),
            {ok, 3145728} = quic_dist:send_file(S, From, [fin]),
            receive {quic_dist_stream, S, {data, <<"got it">>, true}} -> ok end
        end) || _ <- lists:seq(1, 8)],
        [begin
             T = receive {Peer, {quic_dist_stream, Next, passive}} -> Next after 5000 -> error(deadline) end,
             Name = To ++ integer_to_list(element(3, T)),
             {ok, 3145728} = Call(fun() -> quic_dist:recv_file(T, Name, []) end),
             true = file:read_file(Name) =:= {ok, Data},
             ok = Call(fun() -> quic_dist:send(T, <<"got it">>, true) end)
         end || _ <- Many],
        [ok = ended(Sends) || Sends <- Many],
        ok
    end, 60000).

%% What waits for a reader is done by a process of its own.
sending(Fun) -> spawn_monitor(Fun).

ended({Pid, Ref}) -> receive {'DOWN', Ref, process, Pid, normal} -> ok; {'DOWN', Ref, _, _, Reason} -> error(Reason) after 10000 -> error(deadline) end.

wrong_files(Config) ->
    {From, _} = random("from", 1000, Config),
    Folder = ?config(folder, Config),
    Fifo = path("fifo", Config),
    "" = os:cmd("mkfifo " ++ Fifo),
    Loop = path("loop", Config),
    ok = file:make_symlink(Loop, Loop),
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(NodeB, [{active, false}]),
        {ok, S} = quic_dist:open_stream(NodeB, [{active, false}]),
        [{Reason, {error, Reason}} = {Reason, quic_dist:send_file(S, Path, [])}
         || {Path, Reason} <- [{From ++ "x", enoent}, {Folder, eisdir}, {filename:join(From, "x"), enotdir}, {Fifo, einval},
                               {Loop, eloop}, {"a\0b", einval}, {[1114112], badarg}, {not_there, enoent},
                               {lists:duplicate(5000, $x), enametoolong}, {"/dev/zero", einval}]],
        [{error, {bad_option, Name, Value}} = F(S, From, [{Name, Value}])
         || {Name, Value} <- [{offset, -1}, {length, -1}, {length, some}, {timeout, -1}, {mode, 1}],
            F <- [fun quic_dist:send_file/3, fun quic_dist:recv_file/3]],
        {error, {bad_option, fin, 1}} = quic_dist:send_file(S, From, [{fin, 1}]),
        {error, {bad_option, fin, true}} = quic_dist:recv_file(S, From, [fin]),
        {error, {bad_option, nonsense, undefined}} = quic_dist:send_file(S, From, [nonsense]),
        %% longer than the file is: what there is goes, the end does not
        {error, eof} = quic_dist:send_file(S, From, [{length, 1001}, fin]),
        {_, T, passive} = ?S:told(Peer, 5000),
        {error, eisdir} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, Folder, []) end),
        {error, enoent} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, filename:join([Folder, "no", "x"]), []) end),
        {error, {bad_option, offset, 1001}} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, From, [{offset, 1001}]) end),
        {ok, 1000} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, From ++ ".2", [{length, 1000}]) end),
        {error, timeout} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, From ++ ".2", [{timeout, 100}]) end),
        %% not passive
        {ok, U} = quic_dist:open_stream(NodeB),
        {error, einval} = quic_dist:recv_file(U, From, []),
        ok = quic_dist:reset_stream(U),
        receive {quic_dist_stream, U, {reset, 0}} -> ok end,
        {error, unknown_stream} = quic_dist:recv_file(U, From, [{length, 5}]),
        {error, timeout} = quic_dist:recv_file(S, From, [{offset, 7}, {timeout, 0}]),
        %% what is not received does not take the place of what there is
        1000 = filelib:file_size(From),
        {error, unknown_stream} = quic_dist:send_file(U, From, []),
        {error, not_connected} = quic_dist:send_file({quic_dist_stream, 'nobody@nowhere', 20}, From, []),
        %% no descriptor is left open
        {ok, Names} = file:list_dir("/proc/self/fd"),
        [{error, enotdir} = quic_dist:send_file(S, filename:join(From, "x"), []) || _ <- lists:seq(1, 50)],
        [{ok, 1000} = quic_dist:send_file(S, From, []) || _ <- lists:seq(1, 50)],
        {ok, Then} = file:list_dir("/proc/self/fd"),
        true = length(Then) < length(Names) + 10
    end, 60000).

%% Files that the node may not read or write. Root may, unless that is taken from it.
not_permitted(Config) ->
    {Secret, Data} = random("secret", 1000, Config),
    Folder = path("folder", Config),
    ok = file:make_dir(Folder),
    ok = file:change_mode(Secret, 0),
    ok = file:change_mode(Folder, 8#555),
    Plain = "setpriv --bounding-set=-dac_override,-dac_read_search -- ",
    case string:find(os:cmd(Plain ++ "cat " ++ Secret), "Permission denied") of
        nomatch ->
            {skip, "whoever runs this may read everything"};
        _ ->
            [A, B] = ?LIB:start_all([#{tag => T, limits => "exec " ++ Plain ++ "\"$@\""} || T <- ["a", "b"]]),
            ?LIB:connect(A, B),
            NodeB = ?LIB:node(B),
            Free = path("free", Config),
            ?LIB:run(A, fun() ->
                Peer = ?S:acceptor(NodeB, [{active, false}]),
                {ok, S} = quic_dist:open_stream(NodeB),
                {error, eacces} = quic_dist:send_file(S, Secret, [fin]),
                %% the stream is as it was
                ok = quic_dist:send(S, Data, true),
                {_, T, passive} = ?S:told(Peer, 5000),
                [{error, eacces} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, Path, []) end)
                 || Path <- [Secret, filename:join(Folder, "x")]],
                {ok, 1000} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, Free, []) end)
            end, 60000),
            true = read(Free) =:= Data
    end.

%% The disk that a file is received on becomes full: an error, and what fits is there.
full_disk(Config) ->
    on_small_disk(Config, fun(Disk) -> full_disk(Disk, Config) end).

full_disk(Disk, Config) ->
    %% more than the disk, a stream's window (8 MiB) and the queues hold: its sender is not done when the disk is full
    {From, Data} = random("from", 32 * ?MIB, Config),
    To = filename:join(Disk, "to"),
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(NodeB, [{active, false}]),
        {ok, S} = quic_dist:open_stream(NodeB),
        {Pid, Ref} = spawn_monitor(fun() -> exit({sent, quic_dist:send_file(S, From, [fin])}) end),
        {_, T, passive} = ?S:told(Peer, 5000),
        {error, enospc} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, To, []) end),
        %% it is for the receiver to say that the rest is not wanted
        ok = ?S:call(Peer, fun() -> quic_dist:reset_stream(T, 28) end),
        {_, T, {reset, 28}} = ?S:told(Peer, 5000),
        receive {quic_dist_stream, S, {reset, 28}} -> ok after 5000 -> error(deadline) end,
        receive {'DOWN', Ref, process, Pid, {sent, {error, _}}} -> ok after 5000 -> error(deadline) end
    end, 60000),
    Got = read(To),
    true = byte_size(Got) > 2 * ?MIB,
    true = binary:part(Data, 0, byte_size(Got)) =:= Got.

%% Nothing more is read until it is dead, so that it cannot send all that it has meanwhile.
kill(Pid) ->
    Ref = erlang:monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Ref, process, Pid, _} -> ok after 20000 -> error(deadline) end.

%% The stream ends while a file is under way: both sides are told, and what came is in the file.
cut_short(Config) ->
    {From, Data} = random("from", 32 * ?MIB, Config),
    To = path("to", Config),
    {A, _, _, NodeB} = ?S:pair(),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(NodeB, [{active, false}]),
        Self = self(),
        [begin
             {ok, S} = quic_dist:open_stream(NodeB),
             Sender = spawn(fun() -> receive go -> Self ! {sent, quic_dist:send_file(S, From, [fin])} end end),
             ok = quic_dist:controlling_process(S, Sender),
             Sender ! go,
             {_, T, passive} = ?S:told(Peer, 5000),
             %% it cuts in the midst
             Cut = case By of
                 reader -> fun(D, _) when D > 8 * ?MIB -> _ = quic_dist:reset_stream(T, 7); (_, _) -> ok end;
                 killed -> fun(D, _) when D > 8 * ?MIB -> kill(Sender); (_, _) -> ok end
             end,
             {error, _} = ?S:call(Peer, fun() -> quic_dist:recv_file(T, To, [], Cut) end),
             Code = case By of reader -> 7; killed -> 0 end,
             {_, T, {reset, Code}} = ?S:told(Peer, 5000),
             By =:= reader andalso receive {sent, {error, _}} -> ok after 5000 -> error(deadline) end,
             {ok, Got} = file:read_file(To),
             true = byte_size(Got) > 8 * ?MIB,
             true = binary:part(Data, 0, byte_size(Got)) =:= Got
         end || By <- [reader, killed]],
        %% the peer finishes before all is there
        {ok, U} = quic_dist:open_stream(NodeB),
        {ok, 1000} = quic_dist:send_file(U, From, [{length, 1000}, fin]),
        {_, V, passive} = ?S:told(Peer, 5000),
        {error, eof} = ?S:call(Peer, fun() -> quic_dist:recv_file(V, To, [{length, 1001}]) end)
    end, 60000).

%% Nobody reads: the file stays where it is.
stopped_reader(Config) ->
    {From, _} = random("from", 32 * ?MIB, Config),
    {A, B, _, NodeB} = ?S:pair(),
    Done = ?S:grows_less({A, B}, 16 * ?MIB, fun() ->
        _ = ?S:acceptor(NodeB, [{active, false}]),
        {ok, S} = quic_dist:open_stream(NodeB),
        {error, timeout} = quic_dist:send_file(S, From, [{timeout, 500}], fun(D, _) -> put(done, D) end),
        get(done)
    end),
    true = Done =< 2 * ?MIB.

%% Both ways at once, on a path that loses, doubles and reorders.
bad_network(Config) ->
    {From, Data} = random("from", 4 * ?MIB, Config),
    [A, B] = ?LIB:start_all([#{tag => T, args => ["-epmd_module", "quic_dist_test_epmd"]} || T <- ["a", "b"]]),
    NodeB = ?LIB:node(B),
    Relay = ?S:behind_relay(A, B, #{loss => 0.02, duplicate => 0.02, reorder => 0.05}),
    ?LIB:run(A, fun() ->
        Peer = ?S:acceptor(NodeB, [{active, false}]),
        Self = self(),
        [begin
             {There, Back} = {path("there" ++ integer_to_list(I), Config), path("back" ++ integer_to_list(I), Config)},
             {ok, S} = quic_dist:open_stream(NodeB, [{active, false}]),
             _ = spawn_link(fun() -> Self ! {S, sent, quic_dist:send_file(S, From, [fin])} end),
             _ = spawn_link(fun() -> Self ! {S, got, quic_dist:recv_file(S, Back, [])} end),
             {_, T, passive} = ?S:told(Peer, 20000),
             {ok, 4194304} = ?S:call(Peer, fun() ->
                 Me = self(),
                 _ = spawn_link(fun() -> Me ! {T, quic_dist:send_file(T, From, [fin])} end),
                 Result = quic_dist:recv_file(T, There, []),
                 receive {T, {ok, 4194304}} -> Result end
             end),
             [receive {S, What, {ok, 4194304}} -> ok after 20000 -> error({deadline, What}) end || What <- [sent, got]],
             {_, T, closed} = ?S:told(Peer, 5000),
             true = [file:read_file(P) || P <- [There, Back]] =:= [{ok, Data}, {ok, Data}]
         end || I <- [1, 2]],
        ok
    end, 100000),
    #{dropped := Dropped} = quic_dist_relay:stats(Relay),
    true = Dropped > 0,
    quic_dist_relay:stop(Relay).
