%% Nodes under measurement and other programs the benchmark needs: real OS processes, none of which outlives the benchmark.
%%
%% A node halts when its control socket closes (quic_dist_bench_agent); a helper program runs under a shell that kills it when
%% its standard input closes. Both happen when the process that started them ends, in whatever way.
-module(quic_dist_bench_node).

-export([start/1, start_all/1, stop/1, stop_all/1, written/1, call/4, call/5, send_call/4, await_call/3, name/1, os_pid/1]).
-export([start_program/2, stop_program/1, read_line/2]).
-export([cpu_ms/1, thread_cpu_ms/2, resident/1, switches/1, thread_switches/2]).

-export_type([bench_node/0, options/0]).

-opaque bench_node() :: #{name := node(), os_pid := pos_integer(), socket := gen_tcp:socket(), port := port()}.
-type options() :: #{
    carrier := quic_dist_bench_carrier:carrier(),
    name := string(),                  %% before the @
    host => string(),
    namespace => string(),             %% network namespace
    args => [string()]
}.

-define(BOOT_TIMEOUT, 40000).

-spec start(options()) -> bench_node().
start(Options) ->
    [Node] = start_all([Options]),
    Node.

%% They boot at the same time.
-spec start_all([options()]) -> [bench_node()].
start_all(All) ->
    [await_boot(Booting) || Booting <- [boot(Options) || Options <- All]].

boot(#{carrier := Carrier, name := Name} = Options) ->
    Path = filename:join(work(), lists:concat(["control_", erlang:unique_integer([positive])])),
    {ok, Listen} = gen_tcp:listen(0, [{ifaddr, {local, Path}}, binary, {packet, 4}, {active, false}]),
    Full = Name ++ "@" ++ maps:get(host, Options, "127.0.0.1"),
    Args = ["-noinput", "-hidden", "-name", Full, "-start_epmd", "false", "-kernel", "dist_auto_connect", "once", "-pa", work()]
        ++ quic_dist_bench_carrier:args(Carrier) ++ maps:get(args, Options, [])
        ++ ["-run", "quic_dist_bench_agent", "start", Path],
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    {Command, CommandArgs} = in_namespace(maps:get(namespace, Options, none), Erl, Args),
    Port = open_port({spawn_executable, Command},
                     [binary, exit_status, stderr_to_stdout, {args, CommandArgs},
                      {env, [{"ERL_AFLAGS", false}, {"ERL_FLAGS", false}, {"ERL_ZFLAGS", false}, {"ERL_LIBS", false},
                             {"ERL_CRASH_DUMP_SECONDS", "0"}]}]),
    {Listen, Path, Port, Full}.

in_namespace(none, Command, Args) -> {Command, Args};
in_namespace(Namespace, Command, Args) -> {os:find_executable("ip"), ["netns", "exec", Namespace, Command | Args]}.

await_boot({Listen, Path, Port, Full}) ->
    Socket = await_agent(Listen, Port, Full, ?BOOT_TIMEOUT),
    {ok, Hello} = gen_tcp:recv(Socket, 0, ?BOOT_TIMEOUT),
    {hello, Node, OsPid} = binary_to_term(Hello),
    ok = gen_tcp:close(Listen),
    ok = file:delete(Path),
    Full = atom_to_list(Node),
    #{name => Node, os_pid => OsPid, socket => Socket, port => Port}.

%% A node that cannot start says why, and ends.
await_agent(Listen, Port, Full, Left) ->
    case gen_tcp:accept(Listen, 200) of
        {ok, Socket} -> Socket;
        {error, timeout} when Left > 0 ->
            receive {Port, {exit_status, Status}} -> error({no_node, Full, Status, written(Port, <<>>)})
            after 0 -> await_agent(Listen, Port, Full, Left - 200)
            end;
        {error, Reason} -> error({no_node, Full, Reason, written(Port, <<>>)})
    end.

%% What it has written since it was asked last: its log.
-spec written(bench_node()) -> binary().
written(#{port := Port}) -> written(Port, <<>>).

written(Port, Text) ->
    receive {Port, {data, More}} -> written(Port, <<Text/binary, More/binary>>)
    after 0 -> Text
    end.

-spec stop(bench_node()) -> ok.
stop(Node) -> stop_all([Node]).

%% They end at the same time.
-spec stop_all([bench_node()]) -> ok.
stop_all(Nodes) ->
    [ok = gen_tcp:close(Socket) || #{socket := Socket} <- Nodes],
    lists:foreach(fun(#{port := Port}) -> await_exit(Port) end, Nodes).

await_exit(Port) ->
    receive
        {Port, {exit_status, _}} -> ok;
        {Port, {data, _}} -> await_exit(Port)
    after 30000 -> error({does_not_end, Port})
    end.

-spec name(bench_node()) -> node().
name(#{name := Name}) -> Name.

-spec os_pid(bench_node()) -> pos_integer().
os_pid(#{os_pid := OsPid}) -> OsPid.

%%% Calls

-spec call(bench_node(), module(), atom(), [term()]) -> term().
call(Node, M, F, A) -> call(Node, M, F, A, 60000).

-spec call(bench_node(), module(), atom(), [term()], timeout()) -> term().
call(Node, M, F, A, Timeout) -> await_call(Node, send_call(Node, M, F, A), Timeout).

%% Calls that several processes, or several calls of one, have under way must be awaited in order of their answers:
%% the benchmark has at most one under way on a node.
-spec send_call(bench_node(), module(), atom(), [term()]) -> integer().
send_call(#{socket := Socket}, M, F, A) ->
    Seq = erlang:unique_integer([positive]),
    ok = gen_tcp:send(Socket, term_to_binary({call, Seq, M, F, A})),
    Seq.

-spec await_call(bench_node(), integer(), timeout()) -> term().
await_call(#{socket := Socket, name := Name, port := Port}, Seq, Timeout) ->
    case gen_tcp:recv(Socket, 0, Timeout) of
        {ok, Data} ->
            case binary_to_term(Data) of
                {reply, Seq, {ok, Value}} -> Value;
                {reply, Seq, Failure} -> error({on_node, Name, Failure})
            end;
        {error, Reason} ->
            error({no_answer, Name, Reason, written(Port, <<>>)})
    end.

%%% Programs

%% Its standard output comes as lines (read_line/2). It ends when its standard input or the benchmark does.
-spec start_program(string(), [string()]) -> port().
start_program(Command, Args) ->
    %% The shell's input is the port's; it gives it to a `cat' that ends when the port is closed. That has no output:
    %% the port tells of the program's end once nobody has its output any more.
    Script = "exec 3<&0; \"$@\" <&3 & pid=$!; (cat <&3; kill -TERM $pid) >/dev/null 2>&1 & wait $pid",
    open_port({spawn_executable, "/bin/sh"},
              [binary, exit_status, stderr_to_stdout, {line, 4096}, {args, ["-c", Script, "sh", Command | Args]}]).

-spec stop_program(port()) -> ok.
stop_program(Port) ->
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    true = port_close(Port),
    await_os_exit(OsPid, 200).

await_os_exit(OsPid, Tries) ->
    case filelib:is_dir("/proc/" ++ integer_to_list(OsPid)) of
        false -> ok;
        true when Tries > 0 -> timer:sleep(25), await_os_exit(OsPid, Tries - 1);
        true -> error({does_not_end, OsPid})
    end.

-spec read_line(port(), timeout()) -> {line, binary()} | {ended, integer()} | silent.
read_line(Port, Timeout) ->
    receive
        {Port, {data, {_, Line}}} -> {line, Line};
        {Port, {exit_status, Status}} -> {ended, Status}
    after Timeout -> silent
    end.

%%% What the system says of a node

%% CPU time of all its threads, user and system, in milliseconds. The kernel counts in ticks of 10 ms.
-spec cpu_ms(bench_node()) -> non_neg_integer().
cpu_ms(#{os_pid := OsPid}) -> cpu_ms_of(proc(OsPid, "stat")).

%% The same of its thread of that name.
-spec thread_cpu_ms(bench_node(), string()) -> non_neg_integer().
thread_cpu_ms(Node, Name) ->
    lists:sum([cpu_ms_of(filename:join(Task, "stat")) || Task <- tasks(Node, Name)]).

cpu_ms_of(File) ->
    {ok, Stat} = file:read_file(File),
    [_, Rest] = string:split(Stat, ") ", trailing),
    Fields = string:lexemes(Rest, " "),
    10 * (binary_to_integer(lists:nth(12, Fields)) + binary_to_integer(lists:nth(13, Fields))).

%% Resident bytes that are its own: without the pages of programs and libraries, which come and go as they are used.
-spec resident(bench_node()) -> non_neg_integer().
resident(#{os_pid := OsPid}) ->
    1024 * field(proc(OsPid, "status"), "RssAnon:\\s+(\\d+) kB").

%% Voluntary context switches of its thread of that name: how often it went to sleep.
-spec thread_switches(bench_node(), string()) -> non_neg_integer().
thread_switches(Node, Name) ->
    lists:sum([task_switches(Task) || Task <- tasks(Node, Name)]).

tasks(#{os_pid := OsPid}, Name) ->
    [Task || Task <- filelib:wildcard(proc(OsPid, "task/*")),
             {ok, Comm} <- [file:read_file(filename:join(Task, "comm"))], string:trim(Comm) =:= list_to_binary(Name)].

%% The same of all its threads: whatever went to sleep was woken up.
-spec switches(bench_node()) -> non_neg_integer().
switches(#{os_pid := OsPid}) ->
    lists:sum([task_switches(Task) || Task <- filelib:wildcard(proc(OsPid, "task/*"))]).

task_switches(Task) -> field(filename:join(Task, "status"), "\nvoluntary_ctxt_switches:\\s+(\\d+)").

field(File, Pattern) ->
    {ok, Text} = file:read_file(File),
    {match, [Digits]} = re:run(Text, Pattern, [{capture, all_but_first, list}]),
    list_to_integer(Digits).

proc(OsPid, File) -> filename:join(["/proc", integer_to_list(OsPid), File]).

%% The temporary folder of scripts/bench: beams, sockets, keys.
work() -> os:getenv("QUIC_DIST_BENCH_WORK").
