%% A control group that bounds the memory of the nodes that start in it: by the first version of the kernel's interface or by the second. It
%% takes root, and a memory controller that is this test's to use.
-module(quic_dist_test_cgroup).

-export([make/1, delete/1, enter/1, usage/1, limit/2, times/1]).

-export_type([group/0]).

-opaque group() :: #{dir := file:filename(), usage := string(), limit := string(), times := string()}.

-spec make(string()) -> {ok, group()} | none.
make(Name) ->
    V1 = #{dir => filename:join("/sys/fs/cgroup/memory", Name), usage => "memory.usage_in_bytes", limit => "memory.limit_in_bytes",
           times => "memory.failcnt"},
    V2 = #{dir => filename:join("/sys/fs/cgroup", Name), usage => "memory.current", limit => "memory.max", times => "memory.events"},
    made([V1 || filelib:is_dir("/sys/fs/cgroup/memory")] ++ [V2 || filelib:is_file("/sys/fs/cgroup/cgroup.controllers")]).

made([]) -> none;
made([#{dir := Dir, limit := Limit} = Group | More]) ->
    case file:make_dir(Dir) of
        ok ->
            case filelib:is_file(filename:join(Dir, Limit)) of
                true -> {ok, Group};
                false -> _ = file:del_dir(Dir), made(More)
            end;
        {error, _} -> made(More)
    end.

%% Once nobody is in it any more.
-spec delete(group()) -> ok | {error, term()}.
delete(#{dir := Dir}) -> file:del_dir(Dir).

%% What a shell says to go in, with all that it starts then: `limits' of quic_dist_test_lib:start/1. Pages that a process has before it goes in
%% count where it was.
-spec enter(group()) -> string().
enter(#{dir := Dir}) -> "echo $$ > " ++ filename:join(Dir, "cgroup.procs").

%% Bytes, those of files that the kernel could do without among them.
-spec usage(group()) -> non_neg_integer().
usage(#{dir := Dir, usage := File}) -> number(Dir, File).

-spec limit(group(), Bytes :: pos_integer()) -> ok.
limit(#{dir := Dir, limit := File}, Bytes) -> ok = file:write_file(filename:join(Dir, File), integer_to_list(Bytes)).

%% How often there was no room, and the kernel had to make some.
-spec times(group()) -> non_neg_integer().
times(#{dir := Dir, times := File}) -> number(Dir, File).

number(Dir, File) ->
    {ok, Text} = file:read_file(filename:join(Dir, File)),
    {match, [Number]} = re:run(Text, "(?:^|\nmax )([0-9]+)", [{capture, all_but_first, list}]),
    list_to_integer(Number).
