%% The command line quic_dist_cp, against real nodes.
-module(cp_SUITE).
-include_lib("kernel/include/file.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([both_ways/1, targets/1, resumes/1, interrupted/1, full_disk/1, node_dies/1, another_connection/1, bad_network/1, refuses/1, arguments/1]).

%% run on a node
-export([opener/1]).

-import(quic_dist_test_files, [path/2, random/3, read/1, on_small_disk/2]).

-define(LIB, quic_dist_test_lib).
-define(S, quic_dist_test_streams).
-define(MIB, 1048576).

suite() -> [{timetrap, {seconds, 120}}].

all() -> [both_ways, targets, resumes, interrupted, full_disk, node_dies, another_connection, bad_network, refuses, arguments].

init_per_suite(Config) -> ?LIB:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> quic_dist_test_files:init_case(Case, Config).
end_per_testcase(_Case, Config) -> quic_dist_test_files:end_case(Config).

cp_tool() -> filename:join(code:priv_dir(quic_dist), "quic_dist_cp").

%% Starts it; what it writes is collected until it ends.
cp_start(Args) -> cp_start(Args, "").

cp_start(Args, Flags) ->
    Port = open_port({spawn_executable, cp_tool()},
                     [exit_status, stderr_to_stdout, binary, {args, Args}, {env, [{"ERL_FLAGS", "-setcookie " ++ ?LIB:cookie() ++ Flags}]}]),
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    {Port, Pid}.

%% The same behind a relay of 20 MB/s each way: what is to happen in the midst of a copy of 96 MiB has seconds to do so. The relay keeps
%% more than is ever under way, so it loses nothing.
cp_start_slow(Handle, Args) -> cp_start_behind(#{rate => 20000000, rate_ms => 2000}, Handle, Args).

cp_start_behind(Options, Handle, Args) ->
    [Alive, _] = string:lexemes(atom_to_list(?LIB:node(Handle)), "@"),
    {port, Port, _} = erl_epmd:port_please(Alive, {127, 0, 0, 1}),
    {Relay, RelayPort} = quic_dist_relay:start(Options#{to => Port}),
    %% the name as a list of numbers: ERL_FLAGS has no quotes that reach the other side
    Route = io_lib:format(" -pa ~ts -epmd_module quic_dist_test_epmd -kernel quic_dist_test_epmd #{~w=>~w}",
                          [filename:dirname(code:which(quic_dist_test_epmd)), Alive, RelayPort]),
    {Relay, cp_start(Args, lists:flatten(Route))}.

cp_end({Port, _} = Cp) -> cp_end(Cp, Port, []).

cp_end(Cp, Port, Output) ->
    receive
        {Port, {data, Data}} -> cp_end(Cp, Port, [Output, Data]);
        {Port, {exit_status, Status}} -> {Status, unicode:characters_to_list(iolist_to_binary(Output))}
    after 60000 -> error({deadline, Output})
    end.

cp(Args) ->
    {Status, Output} = cp_end(cp_start(Args)),
    ct:log("quic_dist_cp ~ts~n~w: ~ts", [lists:join(" ", Args), Status, Output]),
    {Status, Output}.

remote() -> remote(#{}).

remote(Options) ->
    Handle = ?LIB:start(Options#{tag => "cp"}),
    {Handle, atom_to_list(?LIB:node(Handle)) ++ ":"}.

says(Output, Text) -> string:find(Output, Text) =/= nomatch orelse error({not_said, Text, Output}).

both_ways(Config) ->
    {From, Data} = random("from", 40 * ?MIB + 1, Config),
    ok = file:change_mode(From, 8#754),
    {Handle, At} = remote(),
    [begin
         {0, Output} = cp(["--progress", Source, Target]),
         true = read(To) =:= Data,
         {ok, #file_info{mode = Mode}} = file:read_file_info(To),
         8#754 = Mode band 8#777,
         {error, enoent} = file:read_file_info(To ++ ".part"),
         %% the bar, and the hash
         says(Output, "from "), says(Output, "100% [====================]"),
         says(Output, string:lowercase(binary_to_list(hex(crypto:hash(sha256, Data))))),
         says(Output, "40.0 MiB, of which 40.0 MiB sent"),
         Percents = [list_to_integer(P) || [P] <- percents(Output)],
         true = length(Percents) > 1,
         true = Percents =:= lists:sort(Percents),
         %% quiet, over what is there already
         ok = file:write_file(To, <<"old">>),
         {0, ""} = cp(["-q", Source, Target]),
         true = read(To) =:= Data
     end || {Source, Target, To} <- [{From, At ++ path("up", Config), path("up", Config)},
                                     {At ++ From, path("down", Config), path("down", Config)}]],
    %% nothing of it is left at the node
    ?LIB:wait_until(fun() -> ?LIB:call(Handle, quic_dist, list_streams, []) =:= [] end, 5000),
    ?LIB:wait_until(fun() -> ?LIB:call(Handle, erlang, nodes, [connected]) =:= [] end, 5000).

hex(Binary) -> << <<(integer_to_binary(N, 16))/binary>> || <<N:4>> <= Binary >>.

percents(Output) ->
    {match, Found} = re:run(Output, "(\\d+)% \\[", [global, {capture, all_but_first, list}]),
    Found.

%% Folders, empty files, names that are not ASCII, the current folder.
targets(Config) ->
    Folder = path("folder", Config),
    ok = file:make_dir(Folder),
    {Handle, At} = remote(),
    Name = [$f, 16#e4, 16#3b1, $\s, $x, $:, $y],
    {From, Data} = random(Name, 100000, Config),
    {0, _} = cp([From, At ++ Folder]),
    true = read(filename:join(Folder, Name)) =:= Data,
    {0, _} = cp([At ++ filename:join(Folder, Name), path("copy", Config)]),
    true = read(path("copy", Config)) =:= Data,
    Empty = path("empty", Config),
    ok = file:write_file(Empty, <<>>),
    {0, _} = cp([Empty, At ++ path("empty.up", Config)]),
    {0, _} = cp([At ++ Empty, path("empty.down", Config)]),
    [<<>> = read(path(N, Config)) || N <- ["empty.up", "empty.down"]],
    ok = ?LIB:call(Handle, file, set_cwd, [Folder]),
    {0, _} = cp([path("copy", Config), At]),
    {0, _} = cp([At ++ "copy", path("again", Config)]),
    true = read(path("again", Config)) =:= Data,
    %% a file that is there already
    {1, Output} = cp(["-n", Empty, At ++ "copy"]),
    says(Output, "file already exists"),
    true = read(filename:join(Folder, "copy")) =:= Data,
    {0, _} = cp(["-q", "--", Empty, At ++ "copy"]),
    <<>> = read(filename:join(Folder, "copy")).

%% What an earlier copy left is continued if it is the file's beginning, and not if it is anything else.
resumes(Config) ->
    Size = 20 * ?MIB,
    {From, Data} = random("from", Size, Config),
    {_, At} = remote(),
    Half = binary:part(Data, 0, Size div 2),
    <<Start:1000/binary, Byte, Rest/binary>> = Half,
    Corrupted = <<Start/binary, (Byte bxor 1), Rest/binary>>,
    [begin
         ok = file:write_file(To ++ ".part", Part),
         {0, Output} = cp([Source, Target]),
         true = read(To) =:= Data,
         {error, enoent} = file:read_file_info(To ++ ".part"),
         [says(Output, Word) || Word <- Words],
         ok = file:delete(To)
     end || {Source, Target, To} <- [{From, At ++ path("up", Config), path("up", Config)},
                                     {At ++ From, path("down", Config), path("down", Config)}],
            {Part, Words} <- [{Half, ["going on behind 10.0 MiB", "of which 10.0 MiB sent"]},
                              {Data, ["going on behind 20.0 MiB", "of which 0 B sent"]},
                              {Corrupted, ["something else: starting anew", "of which 20.0 MiB sent"]},
                              {<<Data/binary, 0>>, ["something else: starting anew", "of which 20.0 MiB sent"]}]].

%% It is ended in the midst, in either direction; the next one goes on.
interrupted(Config) ->
    Size = 96 * ?MIB,
    {From, Data} = random("from", Size, Config),
    %% who is killed says nothing: ticks find it out
    {Handle, At} = remote(#{args => ["-kernel", "net_ticktime", "4"]}),
    [begin
         Part = To ++ ".part",
         {Relay, {_, Pid} = Cp} = cp_start_slow(Handle, [Source, Target]),
         ?LIB:wait_until({growing, Part}, fun() -> size_of(Part) > 4 * ?MIB end, 20000),
         "" = os:cmd("kill -" ++ Signal ++ " " ++ integer_to_list(Pid)),
         {_, _} = cp_end(Cp),
         %% the node notices, and lets go of the file and the stream
         ?LIB:wait_until(fun() -> ?LIB:call(Handle, quic_dist, list_streams, []) =:= [] end, 20000),
         quic_dist_relay:stop(Relay),
         {error, enoent} = file:read_file_info(To),
         Left = size_of(Part),
         true = Left < Size,
         {0, Output} = cp([Source, Target]),
         says(Output, "going on behind"),
         true = read(To) =:= Data,
         ok = file:delete(To)
     end || {Source, Target, To, Signal} <- [{From, At ++ path("up", Config), path("up", Config), "KILL"},
                                             {At ++ From, path("down", Config), path("down", Config), "TERM"}]].

size_of(Path) ->
    case file:read_file_info(Path) of
        {ok, #file_info{size = Size}} -> Size;
        {error, enoent} -> 0
    end.

%% The disk is full: it says so, and resumes when there is room.
full_disk(Config) ->
    on_small_disk(Config, fun(Disk) -> full_disk(Disk, Config) end).

full_disk(Disk, Config) ->
    {From, Data} = random("from", 2 * ?MIB, Config),
    To = filename:join(Disk, "to"),
    Filler = filename:join(Disk, "filler"),
    ok = file:write_file(Filler, binary:copy(<<1>>, 3 * ?MIB)),
    {_, At} = remote(),
    {1, Output} = cp([From, At ++ To]),
    says(Output, "no space left on device"),
    {error, enoent} = file:read_file_info(To),
    ok = file:delete(Filler),
    {0, Resumed} = cp([From, At ++ To]),
    says(Resumed, "going on behind"),
    true = read(To) =:= Data.

%% The other node is killed: an error, soon, and what was copied is kept.
node_dies(Config) ->
    {From, _} = random("from", 96 * ?MIB, Config),
    [begin
         {Handle, At} = remote(),
         {Source, Target} = case Direction of
             up -> {From, At ++ To};
             down -> {At ++ From, To}
         end,
         {Relay, Cp} = cp_start_slow(Handle, [Source, Target]),
         ?LIB:wait_until({growing, To}, fun() -> size_of(To ++ ".part") > 4 * ?MIB end, 20000),
         ?LIB:kill(Handle),
         %% nobody listens there any more, which the system says of a relay's port as it would of the node's
         quic_dist_relay:stop(Relay),
         {1, Output} = cp_end(Cp),
         says(Output, "the connection ended"),
         {error, enoent} = file:read_file_info(To),
         true = size_of(To ++ ".part") > 0
     end || {Direction, To} <- [{up, path("up", Config)}, {down, path("down", Config)}]].

%% The connection ends in the midst, and on the next one the stream's number is somebody else's, who is left alone.
another_connection(Config) ->
    {From, _} = random("from", 8 * ?MIB, Config),
    To = path("to", Config),
    {A, _, _, NodeB} = ?S:pair(["-kernel", "dist_auto_connect", "never"]),
    ?LIB:run(A, fun() ->
        Report = fun({progress, Done, _}) when Done > 0 -> get(other) =:= undefined andalso put(other, same_number(NodeB));
                    (_) -> ok
                 end,
        {error, {_, _}} = quic_dist_copy:copy({NodeB, From}, {node(), To}, [], Report),
        Other = get(other),
        ok = quic_dist:send(Other, <<"still there">>, true),
        receive {at_b, Got} -> {fin, <<"still there">>} = Got after 20000 -> error(deadline) end
    end, 60000).

%% The connection goes, and on a new one the other node's first stream has the number of the one that there is now.
same_number(B) ->
    [#{ref := Stream}] = quic_dist:list_streams(B),
    true = erlang:disconnect_node(B),
    ?LIB:wait_until(fun() -> quic_dist:get_controller(B) =:= {error, not_connected} end, 20000),
    ?LIB:wait_until(fun() -> net_kernel:connect_node(B) =:= true andalso (catch erpc:call(B, erlang, node, [])) =:= B end, 20000),
    Self = self(),
    _ = spawn(fun() ->
        ok = quic_dist:accept_streams(B),
        _ = spawn(B, ?MODULE, opener, [Self]),
        receive {quic_dist_stream, Stream, {data, <<"x">>, false}} -> Self ! same_number end,
        timer:sleep(infinity)
    end),
    receive same_number -> Stream after 20000 -> error(deadline) end.

opener(To) ->
    {ok, S} = quic_dist:open_stream(node(To)),
    ok = quic_dist:send(S, <<"x">>),
    To ! {at_b, ?S:collect(S)}.

%% Packets are lost, doubled and overtaken.
bad_network(Config) ->
    {From, Data} = random("from", 4 * ?MIB, Config),
    {Handle, At} = remote(),
    [begin
         {Relay, Cp} = cp_start_behind(?S:bad_network(), Handle, ["-q", Source, Target]),
         {0, ""} = cp_end(Cp),
         #{dropped := Dropped} = quic_dist_relay:stats(Relay),
         true = Dropped > 0,
         quic_dist_relay:stop(Relay),
         true = read(To) =:= Data
     end || {Source, Target, To} <- [{From, At ++ path("up", Config), path("up", Config)},
                                     {At ++ From, path("down", Config), path("down", Config)}]].

refuses(Config) ->
    {From, _} = random("from", 100000, Config),
    Folder = path("folder", Config),
    ok = file:make_dir(Folder),
    {Handle, At} = remote(),
    [begin
         {1, Output} = cp([Source, Target]),
         says(Output, Words)
     end || {Source, Target, Words} <- [{From ++ "x", At ++ path("to", Config), "from" ++ "x: no such file or directory"},
                                        {At ++ From ++ "x", path("to", Config), At ++ From ++ "x: no such file or directory"},
                                        {At ++ Folder, path("to", Config), "illegal operation on a directory"},
                                        {From, At ++ path("no/to", Config), "no such file or directory"},
                                        {At ++ From, path("no/to", Config), "no such file or directory"},
                                        {At ++ From, "/dev/null", "invalid argument"},
                                        {From, At ++ "/dev/full", "invalid argument"},
                                        {From, At ++ "/proc/x", "no such file or directory"},
                                        {At ++ "/dev/zero", path("to", Config), "invalid argument"},
                                        {"nobody@127.0.0.1:x", path("to", Config), "cannot connect to nobody@127.0.0.1"}]],
    {error, enoent} = file:read_file_info(path("to", Config)),
    {error, enoent} = file:read_file_info(path("to.part", Config)),
    %% the disk is full: the part's link leads to /dev/full
    ok = file:make_symlink("/dev/full", path("full.part", Config)),
    {1, Output} = cp([From, At ++ path("full", Config)]),
    says(Output, "invalid argument"),
    %% streams are not for it there
    pong = ?LIB:call(Handle, net_adm, ping, [?LIB:node(Handle)]),
    {Other, Elsewhere} = remote(#{args => ["-quic_dist", "user_streams", "0"]}),
    {1, NoStreams} = cp([From, Elsewhere ++ path("to", Config)]),
    says(NoStreams, "it takes no more streams"),
    pong = ?LIB:call(Other, net_adm, ping, [?LIB:node(Other)]).

arguments(_Config) ->
    {0, Help} = cp(["--help"]),
    says(Help, "usage: quic_dist_cp"),
    [begin {2, Output} = cp(Args), says(Output, Words), says(Output, "usage:") end
     || {Args, Words} <- [{[], "two paths"}, {["x"], "two paths"}, {["x", "y"], "neither"}, {["a@b:x", "c@d:y"], "both"},
                          {["-z", "a@b:x", "y"], "unknown option: -z"}, {["a@b:x", ""], "empty"}]],
    {local, "x:y"} = quic_dist_cp:place("x:y"),
    {local, "./a@b:c"} = quic_dist_cp:place("./a@b:c"),
    {'a@b', "c:d"} = quic_dist_cp:place("a@b:c:d"),
    {'a@b', "."} = quic_dist_cp:place("a@b:"),
    [true = length(quic_dist_cp:bar(Name, Done, 1 bsl 50, Rate)) =< 79
     || Name <- ["x", lists:duplicate(300, $x)], Done <- [0, 1, 1 bsl 49, 1 bsl 50], Rate <- [unknown, 0, 1, 1 bsl 30, 1 bsl 45]].
