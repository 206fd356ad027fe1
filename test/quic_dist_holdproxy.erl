%% The man in the middle of `examples/quic_dist_holdproxy.rs`, as a port of the calling process: it ends with its caller.
%% It is built when there is a cargo; otherwise the one that was built last is used.
-module(quic_dist_holdproxy).

-export([build/0, build/1, start/3, finish/1]).

-define(NAME, "quic_dist_holdproxy").

%% The path of the program.
-spec build() -> file:filename().
build() -> build(?NAME).

%% The path of any of the programs in `examples/'.
-spec build(string()) -> file:filename().
build(Name) ->
    Project = project(filename:dirname(proplists:get_value(source, module_info(compile)))),
    Target = os:getenv("CARGO_TARGET_DIR", filename:join(Project, "target")),
    Program = filename:join([Target, "release", "examples", Name]),
    case {os:getenv("QUIC_DIST_SKIP_NIF"), filelib:is_file(Program), os:find_executable("cargo")} of
        {"1", true, _} -> ok;
        {_, true, false} -> ok;
        {_, false, false} -> error({no_program, Program, "build it with: cargo build --release --example " ++ Name});
        {_, _, Cargo} ->
            Port = open_port({spawn_executable, Cargo}, [{args, ["build", "--release", "--locked", "--quiet", "--example", Name]},
                                                         {cd, Project}, exit_status, stderr_to_stdout, binary]),
            case output(Port, []) of
                {0, _} -> ok;
                {Status, Output} -> error({cargo, Status, Output})
            end
    end,
    Program.

project(Folder) ->
    case filelib:is_file(filename:join(Folder, "Cargo.toml")) of
        true -> Folder;
        false -> project(filename:dirname(Folder))
    end.

output(Port, Output) ->
    receive
        {Port, {data, Data}} -> output(Port, [Output, Data]);
        {Port, {exit_status, Status}} -> {Status, iolist_to_binary(Output)}
    end.

%% The proxy, and the port that it listens on, in front of the node that listens on ToPort.
-spec start(file:filename(), inet:port_number(), [string()]) -> {port(), inet:port_number()}.
start(Program, ToPort, Args) ->
    Port = open_port({spawn_executable, Program}, [
        {args, ["--listen", "127.0.0.1:0", "--to", "127.0.0.1:" ++ integer_to_list(ToPort) | Args]},
        {env, [{"HOLDPROXY_COOKIE", quic_dist_test_lib:cookie()}]},
        exit_status, {line, 1000}]),
    receive
        {Port, {data, {eol, "listening " ++ Listening}}} -> {Port, list_to_integer(Listening)};
        {Port, {exit_status, Status}} -> error({holdproxy, Status})
    after 20000 ->
        error({deadline, holdproxy})
    end.

%% To be called when its connection has ended: how many pieces it passed on, and how many of them late.
-spec finish(port()) -> #{passed := non_neg_integer(), late := non_neg_integer()}.
finish(Port) ->
    receive
        {Port, {data, {eol, "passed " ++ Counts}}} ->
            [Passed, "late", Late] = string:lexemes(Counts, " "),
            receive {Port, {exit_status, 0}} -> ok end,
            #{passed => list_to_integer(Passed), late => list_to_integer(Late)}
    after 20000 ->
        error({deadline, holdproxy_end})
    end.
