%% A folder for each case, with what the suites of files put into it.
-module(quic_dist_test_files).
-include_lib("common_test/include/ct.hrl").

-export([init_case/2, end_case/1, path/2, random/3, read/1, on_small_disk/2]).

-define(LIB, quic_dist_test_lib).

init_case(Case, Config) ->
    case ?LIB:init_case(Case, [{Case, "streams are QUIC's"}], Config) of
        {skip, _} = Skip -> Skip;
        Ready ->
            Folder = filename:join(?config(priv_dir, Config), Case),
            ok = filelib:ensure_dir(filename:join(Folder, "x")),
            [{folder, Folder} | Ready]
    end.

end_case(Config) ->
    _ = file:del_dir_r(?config(folder, Config)),
    ?LIB:end_case(Config).

path(Name, Config) -> filename:join(?config(folder, Config), Name).

%% A file of random bytes.
random(Name, Size, Config) ->
    Path = path(Name, Config),
    Data = rand:bytes(Size),
    ok = file:write_file(Path, Data),
    {Path, Data}.

read(Path) ->
    {ok, Data} = file:read_file(Path),
    Data.

%% Runs a test with a disk of 4 MiB, where one can be made.
on_small_disk(Config, Test) ->
    case ?LIB:small_disk(path("disk", Config), "4m") of
        {error, Why} -> {skip, Why};
        {ok, Disk} -> try Test(Disk) after ?LIB:no_disk(Disk) end
    end.
