%% @doc Copies a file between this node and another: what `priv/quic_dist_cp'
%% does, without its words.
%%
%% The file arrives under another name (`.part' behind its own) and gets its own
%% in one step when both ends have the same SHA-256. What an interrupted copy has
%% left is continued, if it is the beginning of the file that is copied now.
%%
%% The other node opens the stream, whichever way the file goes: it may have
%% acceptors of its own for streams from here, and they would take turns with
%% ours. So nobody else may accept its streams here.
-module(quic_dist_copy).

-export([copy/4]).
%% run at either end
-export([source/1, target/3, send_to/4, receive_from/3, finish/3, discard/1]).

-include_lib("kernel/include/file.hrl").

-export_type([place/0, opt/0, event/0, failure/0]).

-type place() :: {node(), file:name_all()}.
%% `no_clobber': not if there is such a file already.
-type opt() :: no_clobber.
%% What copy/4 tells while it works: that it compares what an earlier copy left
%% (so many bytes), that it goes on from there or cannot, how far it is, and that
%% it compares the whole.
-type event() :: {comparing, pos_integer()}
               | {resuming, pos_integer()}
               | {differs, pos_integer()}
               | {progress, Done :: non_neg_integer(),
                  Total :: non_neg_integer()}
               | verifying.
%% Where it failed, and why. `differs': the hashes do, after all was copied.
-type failure() :: {place(), Reason :: term()}.

%% It should not be in the way of anything.
-define(PRIORITY, 200).

%% @doc Copies. One of the two places is this node, the other one a connected
%% node. The target may be a directory.
-spec copy(place(), place(), [opt()], fun((event()) -> term())) ->
          {ok, #{path := file:name_all(), size := non_neg_integer(),
                 sent := non_neg_integer(), sha256 := <<_:256>>}}
        | {error, failure()}.
copy({_, FromPath} = From, {ToNode, ToPath} = To, Opts, Report) ->
    try
        {Size, Mode} = at(From, source, [FromPath]),
        {Path, Part, Have} = at(To, target, [ToPath, filename:basename(FromPath),
                                             lists:member(no_clobber, Opts)]),
        Target = {ToNode, Path},
        Offset = continue(From, {ToNode, Part}, Have, Size, Report),
        Sent = transfer(From, {ToNode, Part}, Offset, Size, Report),
        Sent =:= Size - Offset orelse throw({failed, From, changed}),
        Hash = verify(From, {ToNode, Part}, Size, Report),
        ok = at(Target, finish, [Part, Path, Mode]),
        {ok, #{path => Path, size => Size, sent => Sent, sha256 => Hash}}
    catch
        throw:{failed, Place, Reason} -> {error, {Place, Reason}}
    end.

%% How much of what there is already is the beginning of the file.
continue(_From, _Part, 0, _Size, _Report) ->
    0;
continue(_From, _Part, Have, Size, Report) when Have > Size ->
    _ = Report({differs, Have}),
    0;
continue(From, Part, Have, _Size, Report) ->
    _ = Report({comparing, Have}),
    case hashes(From, Part, Have) of
        {Same, Same} ->
            _ = Report({resuming, Have}),
            Have;
        _ ->
            _ = Report({differs, Have}),
            0
    end.

verify(From, Part, Size, Report) ->
    _ = Report(verifying),
    case hashes(From, Part, Size) of
        {Same, Same} ->
            Same;
        _ ->
            ok = at(Part, discard, [element(2, Part)]),
            throw({failed, Part, differs})
    end.

%% Both ends read at once.
hashes({FromNode, FromPath} = From, {ToNode, ToPath} = To, Length) ->
    Ask = fun(Node, Path) ->
                  erpc:send_request(Node, quic_dist_file, sha256, [Path, Length])
          end,
    Asked = {Ask(FromNode, FromPath), Ask(ToNode, ToPath)},
    {answer(From, element(1, Asked)), answer(To, element(2, Asked))}.

answer(Place, Request) ->
    case asked(fun() -> erpc:receive_response(Request) end) of
        {ok, Hash} -> Hash;
        {error, Reason} -> throw({failed, Place, Reason})
    end.

at({Node, _} = Place, Function, Args) ->
    case asked(fun() -> erpc:call(Node, ?MODULE, Function, Args, infinity) end) of
        {error, Reason} -> throw({failed, Place, Reason});
        Result -> Result
    end.

asked(Fun) ->
    try
        Fun()
    catch
        error:{erpc, Reason} -> {error, Reason};
        error:{exception, undef, [{Module, _, _, _} | _]} -> {error, {no, Module}};
        _:Reason -> {error, Reason}
    end.

%%% The transfer. Reasons of the stream itself ("it was cut") are the other end's
%%% doing: then its own reason says more.

transfer({Node, _} = From, {_, Part} = To, Offset, Size, Report)
  when Node =/= node() ->
    {_, Path} = From,
    with_stream(From, To, send_to, [node(), Path, Offset, Size - Offset],
                fun(Stream) ->
                        quic_dist:recv_file(Stream, Part, [{offset, Offset}],
                                            progress(Offset, Size, Report))
                end);
transfer({_, Path} = From, {_, Part} = To, Offset, Size, Report) ->
    with_stream(To, From, receive_from, [node(), Part, Offset],
                fun(Stream) ->
                        _ = quic_dist:set_priority(Stream, ?PRIORITY),
                        quic_dist:send_file(Stream, Path,
                                            [{offset, Offset},
                                             {length, Size - Offset}, fin],
                                            progress(Offset, Size, Report))
                end).

progress(Offset, Size, Report) ->
    fun(Done, _Total) -> Report({progress, Offset + Done, Size}) end.

with_stream({Node, _} = There, Here, Function, Args, Fun) ->
    case quic_dist:accept_streams(Node, [{active, false}]) of
        ok -> ok;
        {error, Refusal} -> throw({failed, There, Refusal})
    end,
    %% Of this connection: after it the stream's number is somebody else's.
    Controller = case quic_dist:get_controller(Node) of
                     {ok, C} -> C;
                     {error, Ended} -> throw({failed, There, Ended})
                 end,
    {Pid, Monitor} = spawn_opt(Node, ?MODULE, Function, Args, [monitor]),
    Done = receive
               {quic_dist_stream, {quic_dist_stream, Node, Id} = Stream, passive} ->
                   Ours = Fun(Stream),
                   _ = case Ours of
                           {ok, _} ->
                               quic_dist_controller:close_user_stream(Controller, Id);
                           {error, _} ->
                               quic_dist_controller:reset_user_stream(Controller, Id)
                       end,
                   receive
                       {'DOWN', Monitor, process, Pid, Exit} ->
                           agree(There, told(Exit), Here, Ours)
                   end;
               {'DOWN', Monitor, process, Pid, Exit} ->
                   %% It ends well only after we have had the stream.
                   {error, Reason} = told(Exit),
                   {failed, There, Reason}
           end,
    _ = quic_dist:stop_accepting(Node),
    case Done of
        Bytes when is_integer(Bytes) -> Bytes;
        Failed -> throw(Failed)
    end.

told({copied, Result}) -> Result;
told({undef, [{Module, _, _, _} | _]}) -> {error, {no, Module}};
told(Reason) -> {error, Reason}.

agree(_There, {ok, Bytes}, _Here, {ok, Bytes}) ->
    Bytes;
agree(There, Theirs, Here, Ours) ->
    case {Theirs, Ours} of
        {_, {error, Reason}} when is_atom(Reason), Reason =/= closed,
                                  Reason =/= unknown_stream, Reason =/= eof ->
            {failed, Here, Reason};
        {{error, Reason}, _} ->
            {failed, There, Reason};
        {_, {error, Reason}} ->
            {failed, Here, Reason};
        _ ->
            {failed, Here, eof}
    end.

%%% Run at either end

%% @private The size and the permissions of a file that can be read.
-spec source(file:name_all()) ->
          {Size :: non_neg_integer(), Mode :: non_neg_integer()}
        | {error, badarg | file:posix()}.
source(Path) ->
    case info(fun file:read_file_info/2, Path) of
        {regular, Size, Mode} ->
            case file:open(Path, [read, raw]) of
                {ok, File} -> _ = file:close(File), {Size, Mode};
                {error, _} = Error -> Error
            end;
        {directory, _, _} -> {error, eisdir};
        {_, _, _} -> {error, einval};
        {error, _} = Error -> Error
    end.

%% @private Where the file goes, where it grows, and what is there of it.
-spec target(file:name_all(), Name :: file:name_all(), NoClobber :: boolean()) ->
          {file:name_all(), Part :: file:name_all(), Have :: non_neg_integer()}
        | {error, badarg | file:posix()}.
target(Path, Name, NoClobber) ->
    case info(fun file:read_file_info/2, Path) of
        {directory, _, _} when Name =/= undefined ->
            target(filename:join(Path, Name), undefined, NoClobber);
        {directory, _, _} -> {error, eisdir};
        {regular, _, _} when NoClobber -> {error, eexist};
        {regular, _, _} -> part(Path);
        {error, enoent} -> part(Path);
        {error, _} = Error -> Error;
        {_, _, _} -> {error, einval}
    end.

%% It may hold a secret before it has the permissions of its source.
part(Path) ->
    Part = part_name(Path),
    case info(fun file:read_link_info/2, Part) of
        {regular, Size, _} ->
            private(Path, Part, Size);
        {error, enoent} ->
            private(Path, Part, 0);
        {error, _} = Error ->
            Error;
        {_, _, _} ->
            {error, einval}
    end.

part_name(Path) when is_binary(Path) -> <<Path/binary, ".part">>;
part_name(Path) -> filename:flatten([Path, ".part"]).

private(Path, Part, Size) ->
    case file:open(Part, [read, write, raw]) of
        {ok, File} ->
            _ = file:close(File),
            case file:change_mode(Part, 8#600) of
                ok -> {Path, Part, Size};
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

info(Read, Path) ->
    case Read(Path, [raw, {time, posix}]) of
        {ok, #file_info{type = Type, size = Size, mode = Mode}} ->
            {Type, Size, Mode};
        {error, _} = Error -> Error
    end.

%% @private Sends to a node that accepts; the result is in the exit reason.
-spec send_to(node(), file:name_all(), non_neg_integer(), non_neg_integer()) ->
          no_return().
send_to(Node, Path, Offset, Length) ->
    exit({copied,
          case quic_dist:open_stream(Node, [{priority, ?PRIORITY}]) of
              {ok, Stream} ->
                  Result = quic_dist:send_file(Stream, Path,
                                               [{offset, Offset},
                                                {length, Length}, fin]),
                  finished(Stream, Result);
              {error, _} = Error ->
                  Error
          end}).

%% The other side finishes too when it has all of it.
finished(Stream, {ok, _} = Result) ->
    receive
        {quic_dist_stream, Stream, closed} -> Result;
        {quic_dist_stream, Stream, {reset, _} = Reset} -> {error, Reset}
    end;
finished(_Stream, Error) ->
    Error.

%% @private Receives from a node that accepts.
-spec receive_from(node(), file:name_all(), non_neg_integer()) -> no_return().
receive_from(Node, Part, Offset) ->
    exit({copied,
          case quic_dist:open_stream(Node, [{active, false}]) of
              {ok, Stream} ->
                  %% Which also tells the other side of it.
                  _ = quic_dist:close_stream(Stream),
                  quic_dist:recv_file(Stream, Part, [{offset, Offset}]);
              {error, _} = Error ->
                  Error
          end}).

%% @private The part becomes the file, and is on the disk before.
-spec finish(file:name_all(), file:name_all(), Mode :: non_neg_integer()) ->
          ok | {error, badarg | file:posix()}.
finish(Part, Path, Mode) ->
    Steps = [fun() -> synced(Part) end,
             fun() -> file:change_mode(Part, Mode band 8#777) end,
             fun() -> file:rename(Part, Path) end],
    lists:foldl(fun(Step, ok) -> Step();
                   (_Step, Error) -> Error
                end, ok, Steps).

synced(Part) ->
    case file:open(Part, [read, write, raw]) of
        {ok, File} ->
            Result = file:datasync(File),
            case file:close(File) of
                ok -> Result;
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% @private It is of no use to anybody.
-spec discard(file:name_all()) -> ok | {error, badarg | file:posix()}.
discard(Part) ->
    file:delete(Part).
