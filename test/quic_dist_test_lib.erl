%% What every suite shares: real nodes (separate `erl` OS processes), waits with a deadline, counters from /proc.
%%
%% A node is held by one process of the Common Test node: its manager, which owns the OS process (a port) and the control
%% socket to the agent in it. Managers are linked to nobody and are members of a `pg` group, so that end_per_testcase finds
%% and kills every node of a case whatever became of the case's own process.
%%
%% The carrier under test is named by the environment variable QUIC_DIST_TEST_CARRIER: `quic` (default) or `inet_tcp`.
-module(quic_dist_test_lib).

-export([carrier/0, init_suite/1, end_suite/1, init_case/3, end_case/1]).
-export([start/1, start_all/1, boot/1, kill/1, stop/1, cast/4, signal/2, call/4, call/5, run/2, run/3, worker/1, run_in/3, node/1, os_pid/1]).
-export([small_disk/2, no_disk/1]).
-export([output/1, await_exit/2, name/1, node_args/1, carrier_args/0, carrier_args/1, ebin/0, cookie/0, erl/0]).
-export([connect/2, await_connected/2, await_alone/1, await_mesh/1, disconnect/2, connection/2]).
-export([collect/1]).
-export([wait_until/2, wait_until/3, not_at_midnight/1]).
-export([threads/1, fds/1, rss/1, alive/1, free_port/0, fake_epmd_name/2]).

-export_type([handle/0, options/0]).

-type handle() :: #{pid := pid(), name := string()}.
%% A node under test: which process manages it, and the name it was started under.

-type options() :: #{
    name => string(),                        %% full name; default a unique one at 127.0.0.1
    naming => name | sname | none,           %% which flag carries the name (default name)
    tag => string(),                         %% part of the unique name, for people who read logs
    cookie => string(),
    carrier => string(),                     %% value of -proto_dist; default the carrier under test
    args => [string()],
    env => [{string(), string() | false}],
    limits => string(),                      %% shell commands to run before, in its place: `ulimit -n 100'
    namespace => string(),                   %% network namespace to run in (quic_dist_test_net)
    scope => 'case' | suite,                 %% when it is cleaned up at the latest
    boot_timeout => timeout()
}.

-define(SCOPE, quic_dist_test).
-define(CALL_TIMEOUT, 30000).
-define(BOOT_TIMEOUT, 30000).

%%% The carrier under test

-spec carrier() -> quic | inet_tcp.
carrier() ->
    case os:getenv("QUIC_DIST_TEST_CARRIER", "quic") of
        "quic" -> quic;
        "inet_tcp" -> inet_tcp
    end.

-spec carrier_args() -> [string()].
carrier_args() -> carrier_args(atom_to_list(carrier())).

-spec carrier_args(string()) -> [string()].
carrier_args(Name) -> ["-proto_dist", Name | [Arg || Dir <- ebin(), Arg <- ["-pa", Dir]]].

%% The directory of the carrier's beams, or [] where there is none (which is an error only when the carrier is quic).
-spec ebin() -> [string()].
ebin() ->
    case {os:getenv("QUIC_DIST_EBIN"), code:where_is_file("quic_dist.beam")} of
        {false, non_existing} -> [];
        {false, Beam} -> [filename:dirname(filename:absname(Beam))];
        {Dir, _} -> [filename:absname(Dir)]
    end.

%%% Set-up and clean-up

-spec init_suite(list()) -> list().
init_suite(Config) ->
    carrier() =:= quic andalso ebin() =:= [] andalso error({no_carrier, "set QUIC_DIST_EBIN to the ebin directory of quic_dist"}),
    case pg:start(?SCOPE) of
        {ok, _} -> ok;
        {error, {already_started, _}} -> ok
    end,
    ok = quic_dist_test_clock:start(),
    Config.

-spec end_suite(list()) -> ok.
end_suite(_Config) ->
    stop_members('case'),
    stop_members(suite).

%% A case in QuicOnly ([{Case, Reason}]) is skipped on another carrier, with its reason.
-spec init_case(atom(), [{atom(), string()}], list()) -> list() | {skip, string()}.
init_case(Case, QuicOnly, Config) ->
    case {carrier(), lists:keyfind(Case, 1, QuicOnly)} of
        {Carrier, {Case, Reason}} when Carrier =/= quic ->
            {skip, lists:flatten(io_lib:format("not on ~s: ~s", [Carrier, Reason]))};
        _ ->
            Config
    end.

%% Shows what the nodes of the case wrote to their terminals, then kills them.
-spec end_case(list()) -> ok.
end_case(_Config) -> stop_members('case').

stop_members(Scope) ->
    Pids = pg:get_local_members(?SCOPE, Scope),
    Monitors = [begin Pid ! stop, {erlang:monitor(process, Pid), Pid} end || Pid <- Pids],
    [receive
         {'DOWN', Monitor, process, Pid, {stopped, Name, Output}} ->
             Output =/= <<>> andalso ct:log("output of ~s:~n~ts", [Name, Output]);
         {'DOWN', Monitor, process, Pid, Reason} ->
             ct:log("the manager of a node died: ~p", [Reason])
     after 20000 ->
         error({node_not_stopped, Pid})
     end || {Monitor, Pid} <- Monitors],
    ok.

%%% Nodes

-spec start(options()) -> handle().
start(Options) -> hd(start_all([Options])).

%% They boot at the same time.
-spec start_all([options()]) -> [handle()].
start_all(List) ->
    Booting = [spawn_manager(Options) || Options <- List],
    [case await_boot(Started) of
         {ok, Handle} -> Handle;
         {error, Reason} -> error({node_did_not_start, Reason})
     end || Started <- Booting].

%% As start/1, for a node that is expected to fail: {error, {exit_status, Status, Output}}.
-spec boot(options()) -> {ok, handle()} | {error, term()}.
boot(Options) -> await_boot(spawn_manager(Options)).

spawn_manager(Options) ->
    Caller = self(),
    Ref = make_ref(),
    {Pid, Monitor} = spawn_monitor(fun() -> manager(Caller, Ref, Options) end),
    {Pid, Monitor, Ref}.

await_boot({Pid, Monitor, Ref}) ->
    receive
        {Ref, Result} -> erlang:demonitor(Monitor, [flush]), Result;
        {'DOWN', Monitor, process, Pid, Reason} -> {error, Reason}
    end.

-spec kill(handle()) -> ok.
kill(#{pid := Pid} = Handle) ->
    Pid ! kill,
    _ = await_exit(Handle, 10000),
    ok.

%% Has it stop in order, and waits until it has. Gives its exit status.
-spec stop(handle()) -> ExitStatus :: integer().
stop(Handle) ->
    ok = cast(Handle, init, stop, []),
    await_exit(Handle, 20000).

%% Has the node call this, and does not wait for what comes of it: the node may be gone before it could say so.
-spec cast(handle(), module(), atom(), [term()]) -> ok.
cast(#{pid := Pid}, M, F, A) ->
    Pid ! {cast, M, F, A},
    ok.

%% Signal is what kill(1) takes: "STOP", "CONT".
-spec signal(handle(), string()) -> ok.
signal(Handle, Signal) ->
    "" = os:cmd("kill -" ++ Signal ++ " " ++ integer_to_list(os_pid(Handle))),
    ok.

%% Waits until the OS process is gone.
-spec await_exit(handle(), timeout()) -> ExitStatus :: integer().
await_exit(Handle, Timeout) -> ask(Handle, await_exit, Timeout).

-spec node(handle()) -> node().
node(Handle) -> call(Handle, erlang, node, []).

-spec os_pid(handle()) -> integer().
os_pid(Handle) -> ask(Handle, os_pid, 5000).

%% What it wrote to its standard output and error so far.
-spec output(handle()) -> binary().
output(Handle) -> ask(Handle, output, 5000).

-spec call(handle(), module(), atom(), [term()]) -> term().
call(Handle, M, F, A) -> call(Handle, M, F, A, ?CALL_TIMEOUT).

-spec call(handle(), module(), atom(), [term()], timeout()) -> term().
call(#{name := Name} = Handle, M, F, A, Timeout) ->
    case ask(Handle, {call, M, F, A}, Timeout) of
        {ok, Value} -> Value;
        {Class, Reason, Stack} -> error({on_node, Name, Class, Reason, Stack})
    end.

%% Runs a fun of a test module on the node (which finds the module by the -pa that every node gets).
-spec run(handle(), fun(() -> term())) -> term().
run(Handle, Fun) -> run(Handle, Fun, ?CALL_TIMEOUT).

-spec run(handle(), fun(() -> term()), timeout()) -> term().
run(Handle, Fun, Timeout) -> call(Handle, erlang, apply, [Fun, []], Timeout).

%% A process on the node that runs funs one after the other: what they send comes from one sender, and so in one order.
-spec worker(handle()) -> pid().
worker(Handle) -> run(Handle, fun() -> spawn(fun work/0) end).

work() ->
    receive {From, Fun} -> From ! {self(), Fun()} end,
    work().

-spec run_in(handle(), pid(), fun(() -> term())) -> term().
run_in(Handle, Worker, Fun) ->
    run(Handle, fun() -> Worker ! {self(), Fun}, receive {Worker, Result} -> Result end end).

ask(#{pid := Pid, name := Name}, Request, Timeout) ->
    Monitor = erlang:monitor(process, Pid),
    Pid ! {ask, self(), Monitor, Request},
    receive
        {Monitor, {answer, Answer}} -> erlang:demonitor(Monitor, [flush]), Answer;
        {Monitor, {gone, Status, Output}} -> error({node_gone, Name, Status, Output, Request});
        {'DOWN', Monitor, process, Pid, Reason} -> error({no_manager, Name, Reason, Request})
    after Timeout ->
        error({deadline, Name, Request, Timeout})
    end.

%%% The manager of one node

manager(Caller, Ref, Options) ->
    process_flag(trap_exit, true),
    ok = pg:join(?SCOPE, maps:get(scope, Options, 'case'), self()),
    {Listen, Control} = listen(Options),
    Named = maps:merge(#{name => name(maps:get(tag, Options, "n"))}, Options),
    {Command, Before} = command(Options),
    Port = open_port({spawn_executable, Command}, [
        binary, exit_status, stderr_to_stdout,
        {env, [{"ERL_AFLAGS", false}, {"ERL_FLAGS", false}, {"ERL_ZFLAGS", false}, {"ERL_LIBS", false},
               {"ERL_CRASH_DUMP_SECONDS", "0"} | preload() ++ maps:get(env, Options, [])]},
        {args, Before ++ node_args(Named) ++ ["-noshell", "-noinput", "-run", "quic_dist_test_agent", "start", Control]}]),
    Manager = self(),
    spawn_link(fun() ->
        {ok, Socket} = gen_tcp:accept(Listen),
        _ = [ok = file:delete(Control) || hd(Control) =:= $/],
        ok = gen_tcp:controlling_process(Socket, Manager)
    end),
    Timer = erlang:send_after(maps:get(boot_timeout, Options, ?BOOT_TIMEOUT), self(), boot_timeout),
    OsPid = case erlang:port_info(Port, os_pid) of {os_pid, P} -> P; undefined -> undefined end,
    loop(#{name => maps:get(name, Named), port => Port, listen => Listen, os_pid => OsPid, socket => undefined, output => [],
           seq => 0, calls => #{}, exit_status => undefined, exit_waiters => [], boot => {Caller, Ref, Timer}}).

%% A library to load before all others, which watches the node's memory (scripts/sanitize).
preload() ->
    case {os:getenv("QUIC_DIST_PRELOAD"), os:getenv("QUIC_DIST_PRELOAD_OPTIONS", "")} of
        {false, _} -> [];
        {Library, Options} -> [{"LD_PRELOAD", Library}, {"ASAN_OPTIONS", Options}, {"ERL_ZFLAGS", "+Mea min"}]
    end.

%% Where the agent finds its manager.
listen(#{namespace := _}) ->
    Path = filename:join(["/tmp", lists:concat(["qdt_", os:getpid(), "_", erlang:unique_integer([positive])])]),
    {ok, Listen} = gen_tcp:listen(0, [binary, {packet, 4}, {ifaddr, {local, Path}}, {active, true}]),
    {Listen, Path};
listen(_) ->
    {ok, Listen} = gen_tcp:listen(0, [binary, {packet, 4}, {ip, {127, 0, 0, 1}}, {active, true}, {nodelay, true}]),
    {ok, Port} = inet:port(Listen),
    {Listen, integer_to_list(Port)}.

command(#{namespace := Namespace} = Options) ->
    {Command, Before} = command(maps:remove(namespace, Options)),
    {os:find_executable("ip"), ["netns", "exec", Namespace, Command | Before]};
command(#{limits := Script}) -> {"/bin/sh", ["-c", Script ++ " && exec \"$@\"", "sh", erl()]};
command(_) -> {erl(), []}.

loop(#{port := Port, socket := Socket, output := Output, calls := Calls, name := Name} = S) ->
    receive
        {Port, {data, Data}} ->
            loop(S#{output := [Output, Data]});
        {Port, {exit_status, Status}} ->
            loop(gone(Status, booted({error, {exit_status, Status, iolist_to_binary(Output)}}, S)));
        {tcp, NewSocket, Data} ->
            case binary_to_term(Data) of
                {hello, _Node, OsPid} ->
                    loop(booted({ok, #{pid => self(), name => Name}}, S#{socket := NewSocket, os_pid := OsPid}));
                {reply, Seq, Result} ->
                    case maps:take(Seq, Calls) of
                        {To, Rest} -> loop(answer(To, Result, S#{calls := Rest}));
                        %% nobody waits for that of a cast
                        error -> loop(S)
                    end
            end;
        {tcp_closed, Socket} ->
            loop(S#{socket := undefined});
        {ask, From, Tag, Request} ->
            loop(asked(Request, {From, Tag}, S));
        {cast, M, F, A} ->
            loop(tell(M, F, A, S));
        kill ->
            loop(kill_os_process(S));
        boot_timeout ->
            loop(kill_os_process(booted({error, {boot_timeout, iolist_to_binary(Output)}}, S)));
        stop ->
            exit({stopped, Name, iolist_to_binary(stop_os_process(S))});
        {'EXIT', _, _} ->
            loop(S);
        {tcp_error, _, _} ->
            loop(S)
    end.

asked(os_pid, To, #{os_pid := OsPid} = S) -> answer(To, OsPid, S);
asked(output, To, #{output := Output} = S) -> answer(To, iolist_to_binary(Output), S);
asked(await_exit, To, #{exit_status := undefined, exit_waiters := W} = S) -> S#{exit_waiters := [To | W]};
asked(await_exit, To, #{exit_status := Status} = S) -> answer(To, Status, S);
asked({call, _, _, _}, {From, Tag}, #{exit_status := Status, output := Output} = S) when Status =/= undefined ->
    From ! {Tag, {gone, Status, iolist_to_binary(Output)}},
    S;
asked({call, M, F, A}, To, #{seq := Seq, calls := Calls} = S) ->
    tell(M, F, A, S#{calls := Calls#{Seq => To}}).

tell(M, F, A, #{socket := Socket, seq := Seq} = S) ->
    %% a failed send is seen as the exit of the node, soon
    _ = Socket =/= undefined andalso gen_tcp:send(Socket, term_to_binary({call, Seq, M, F, A})),
    S#{seq := Seq + 1}.

answer({From, Tag}, Answer, S) ->
    From ! {Tag, {answer, Answer}},
    S.

booted(Result, #{boot := {Caller, Ref, Timer}} = S) ->
    _ = erlang:cancel_timer(Timer),
    Caller ! {Ref, Result},
    S#{boot := undefined};
booted(_, S) -> S.

gone(Status, #{calls := Calls, exit_waiters := Waiters, output := Output} = S) ->
    [From ! {Tag, {gone, Status, iolist_to_binary(Output)}} || {From, Tag} <- maps:values(Calls)],
    [From ! {Tag, {answer, Status}} || {From, Tag} <- Waiters],
    S#{exit_status := Status, calls := #{}, exit_waiters := []}.

kill_os_process(#{exit_status := undefined, os_pid := OsPid} = S) when is_integer(OsPid) ->
    _ = os:cmd("kill -KILL " ++ integer_to_list(OsPid)),
    S;
kill_os_process(S) -> S.

stop_os_process(#{exit_status := Status, output := Output}) when Status =/= undefined -> Output;
stop_os_process(#{port := Port, output := Output} = S) ->
    kill_os_process(S),
    receive
        {Port, {data, Data}} -> stop_os_process(S#{output := [Output, Data]});
        {Port, {exit_status, Status}} -> stop_os_process(S#{exit_status := Status})
    after 10000 ->
        exit({not_killed, S})
    end.

%%% Command lines

-spec erl() -> string().
erl() -> filename:join([code:root_dir(), "bin", "erl"]).

%% A name that no other test run on this machine uses: EPMD is shared.
-spec name(string()) -> string().
name(Tag) -> lists:concat(["qdt_", Tag, "_", os:getpid(), "_", erlang:unique_integer([positive]), "@127.0.0.1"]).

-spec cookie() -> string().
cookie() -> "qdt_cookie_" ++ os:getpid().

%% A file system in memory, which Size bounds as mount(8) has it.
-spec small_disk(file:filename(), string()) -> {ok, file:filename()} | {error, string()}.
small_disk(Dir, Size) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    case os:cmd("mount -t tmpfs -o size=" ++ Size ++ " tmpfs " ++ Dir) of
        "" -> {ok, Dir};
        Why -> {error, "a file system of its own: " ++ string:trim(Why)}
    end.

-spec no_disk(file:filename()) -> ok.
no_disk(Dir) ->
    "" = os:cmd("umount -l " ++ Dir),
    ok.

-spec node_args(options()) -> [string()].
node_args(Options) ->
    naming(maps:get(naming, Options, name), Options)
        ++ ["-setcookie", maps:get(cookie, Options, cookie())]
        ++ carrier_args(maps:get(carrier, Options, atom_to_list(carrier())))
        ++ ["-pa", filename:dirname(filename:absname(code:where_is_file(?MODULE_STRING ++ ".beam")))]
        ++ maps:get(args, Options, []).

naming(none, _) -> [];
naming(name, #{name := Name}) -> ["-name", Name];
naming(sname, #{name := Name}) -> ["-sname", Name].

%%% Connections

%% Connects A to B and waits until both see each other.
-spec connect(handle(), handle()) -> ok.
connect(A, B) ->
    NodeB = ?MODULE:node(B),
    %% Right after a disconnect the other end may still be taking its old connection down, and then it refuses. And one may be told that
    %% it is connected of a connection that is about to end: then it dials anew.
    wait_until({connect, NodeB}, fun() -> call(A, net_kernel, connect_node, [NodeB]) =:= true andalso are_connected(A, B) end, 40000).

-spec await_connected(handle(), handle()) -> ok.
await_connected(A, B) -> wait_until({connected, A, B}, fun() -> are_connected(A, B) end, 20000).

are_connected(A, B) -> sees(A, ?MODULE:node(B)) andalso sees(B, ?MODULE:node(A)).

sees(Handle, Node) -> lists:member(Node, call(Handle, erlang, nodes, [connected])).

-spec await_alone(handle()) -> ok.
await_alone(A) ->
    wait_until({alone, A}, fun() -> call(A, erlang, nodes, [connected]) =:= [] end, 20000).

-spec await_mesh([handle()]) -> ok.
await_mesh(Handles) ->
    Nodes = lists:sort([?MODULE:node(H) || H <- Handles]),
    [wait_until({mesh, H}, fun() -> lists:sort([?MODULE:node(H) | call(H, erlang, nodes, [])]) =:= Nodes end, 30000) || H <- Handles],
    ok.

%% Takes the connection down from A's end and waits until neither end has it.
-spec disconnect(handle(), handle()) -> ok.
disconnect(A, B) ->
    {NodeA, NodeB} = {?MODULE:node(A), ?MODULE:node(B)},
    try
        wait_until({disconnected, NodeA, NodeB}, fun() ->
            %% again: global, cut off in the midst of its first words, may have connected them meanwhile
            _ = call(A, erlang, disconnect_node, [NodeB]),
            not sees(A, NodeB) andalso not sees(B, NodeA) andalso has_let_go(A, NodeB) andalso has_let_go(B, NodeA)
        end, 20000)
    catch
        %% it takes a bad network to get here: what either of them makes of it
        error:{deadline, _} = Why ->
            carrier() =:= quic andalso ct:log("~p~n~p", [Why, [call(H, quic_dist, info, []) || H <- [A, B]]]),
            error(Why)
    end.

%% net_kernel, too, has taken the connection down, which takes it a little longer than nodes() to know. (It may keep another record of the node.)
has_let_go(Handle, Node) ->
    run(Handle, fun() -> ets:whereis(sys_dist) =:= undefined orelse [] =:= [C || C <- ets:lookup(sys_dist, Node), element(1, C) =:= connection] end).

%%% Waiting

%% Returns when midnight, UTC, is at least so many seconds away: then all keys of tickets change, and no session is resumed.
-spec not_at_midnight(pos_integer()) -> ok.
not_at_midnight(Seconds) ->
    case 86400 - os:system_time(second) rem 86400 of
        Left when Left < Seconds -> timer:sleep(1000 * (Left + 1));
        _ -> ok
    end.

-spec wait_until(fun(() -> boolean()), timeout()) -> ok.
wait_until(Fun, Timeout) -> wait_until(condition, Fun, Timeout).

-spec wait_until(What :: term(), fun(() -> boolean()), timeout()) -> ok.
wait_until(What, Fun, Timeout) -> wait_loop(What, Fun, erlang:monotonic_time(millisecond) + Timeout, 2).

%% The last look is one after the deadline, however long the pause before it turned out to be.
wait_loop(What, Fun, Deadline, Pause) ->
    IsOver = erlang:monotonic_time(millisecond) > Deadline,
    case Fun() of
        true -> ok;
        false ->
            IsOver andalso error({deadline, What}),
            timer:sleep(Pause),
            wait_loop(What, Fun, Deadline, min(2 * Pause, 50))
    end.

%%% What a node says of itself

%% What A knows of its connection with B.
-spec connection(handle(), handle()) -> map().
connection(A, B) ->
    Node = ?MODULE:node(B),
    #{connections := Connections} = call(A, quic_dist, info, []),
    [Connection] = [C || #{node := N} = C <- Connections, N =:= Node],
    Connection.

%% Collects the garbage of all processes: what they have on their heaps is not what is left of anything.
-spec collect(handle()) -> ok.
collect(Handle) -> run(Handle, fun() -> _ = [erlang:garbage_collect(P) || P <- processes()], ok end).

%%% What the operating system says of a node

-spec threads(handle()) -> non_neg_integer().
threads(Handle) -> status_field(Handle, "Threads:\\s+(\\d+)").

%% Resident bytes.
-spec rss(handle()) -> non_neg_integer().
rss(Handle) -> 1024 * status_field(Handle, "VmRSS:\\s+(\\d+) kB").

-spec fds(handle()) -> non_neg_integer().
fds(Handle) ->
    {ok, Names} = file:list_dir(proc(Handle, "fd")),
    length(Names).

-spec alive(handle()) -> boolean().
alive(Handle) -> filelib:is_dir(proc(Handle, "")).

status_field(Handle, Pattern) ->
    {ok, Status} = file:read_file(proc(Handle, "status")),
    {match, [Digits]} = re:run(Status, Pattern, [{capture, all_but_first, list}]),
    list_to_integer(Digits).

proc(Handle, File) -> filename:join(["/proc", integer_to_list(os_pid(Handle)), File]).

%%% The network

%% A port that was free for TCP and for UDP a moment ago, and that the kernel gives to nobody who asks for any (which it takes from
%% 32768 on).
-spec free_port() -> inet:port_number().
free_port() ->
    Port = 20000 + rand:uniform(12000),
    case {gen_udp:open(Port, []), gen_tcp:listen(Port, [])} of
        {{ok, Udp}, {ok, Tcp}} -> ok = gen_tcp:close(Tcp), ok = gen_udp:close(Udp), Port;
        {Udp, Tcp} ->
            _ = [gen_udp:close(S) || {ok, S} <- [Udp]],
            _ = [gen_tcp:close(S) || {ok, S} <- [Tcp]],
            free_port()
    end.

%% Tells EPMD that a node of this name listens on Port. It holds for as long as the returned socket is open.
-spec fake_epmd_name(string(), inet:port_number()) -> gen_tcp:socket().
fake_epmd_name(Name, Port) ->
    EpmdPort = list_to_integer(os:getenv("ERL_EPMD_PORT", "4369")),
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, EpmdPort, [binary, {active, false}], 5000),
    Alive = list_to_binary(Name),
    %% ALIVE2_REQ: normal node, TCP/IPv4, versions 6 to 5, no extra
    Request = <<120, Port:16, 77, 0, 6:16, 5:16, (byte_size(Alive)):16, Alive/binary, 0:16>>,
    ok = gen_tcp:send(Socket, [<<(byte_size(Request)):16>>, Request]),
    {ok, <<Tag, 0, _/binary>>} = gen_tcp:recv(Socket, 0, 5000),
    true = Tag =:= 118 orelse Tag =:= 121,
    Socket.
