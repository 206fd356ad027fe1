%% @doc Files on streams of the application's own: what `quic_dist:send_file/3,4'
%% and `recv_file/3,4' do, and the hash that a copy is checked with.
%%
%% No byte passes through the heap of a process. The NIF library reads a file
%% into the buffers that the engine sends, a piece whenever the stream's queue
%% has room. What a stream brings is a binary outside the heap already, and is
%% written from there.
-module(quic_dist_file).

-export([send/5, recv/5, sha256/2]).

-export_type([send_opt/0, recv_opt/0, progress/0, error/0]).

-type opt() :: {offset, non_neg_integer()}
             | {length, non_neg_integer() | all}
             | {timeout, timeout()}.
-type send_opt() :: opt() | fin | {fin, boolean()}.
-type recv_opt() :: opt().
%% Called in the calling process after each piece, and once where there is none:
%% bytes so far, and in all (`unknown' where only the peer's end will tell).
-type progress() :: fun((Done :: non_neg_integer(),
                         Total :: non_neg_integer() | unknown) -> term()).
%% `eof': the file, or what the peer sends, ended before `length'.
-type error() :: quic_dist_stream:error() | file:posix() | badarg | eof
               | timeout | einval | ealready.

-type conn() :: quic_dist_nif:connection().
-type id() :: non_neg_integer().

%% What one call reads or writes: large enough that the calls do not count, small
%% enough that a stream's queue stays near its mark.
-define(PIECE, 262144).
%% What one call hashes.
-define(HASH_PIECE, 1048576).

%% @doc Sends a part of a file, or all of it as long as it is at the beginning.
-spec send(conn(), id(), file:name_all(), [send_opt()], progress()) ->
          {ok, Sent :: non_neg_integer()} | {error, error()}.
send(Conn, Id, Path, Opts, Progress) ->
    case options(Opts, #{offset => 0, length => all, fin => false,
                         timeout => infinity}) of
        {ok, #{offset := Offset, length := Length} = Set} ->
            with_file(Path, fun(File, Size) ->
                                    Total = total(Length, Offset, Size),
                                    send_pieces(Conn, Id, File, Set, Total,
                                                Progress, 0)
                            end);
        {error, _} = Error ->
            Error
    end.

total(all, Offset, Size) ->
    max(0, Size - Offset);
total(Length, _Offset, _Size) ->
    Length.

%% There is at least one piece, which may be empty: it says that this was all.
send_pieces(Conn, Id, File, Set, Total, Progress, Done) ->
    #{offset := Offset, fin := Fin, timeout := Timeout} = Set,
    Length = min(?PIECE, Total - Done),
    Last = Done + Length =:= Total,
    Deadline = quic_dist_stream:deadline(Timeout),
    case quic_dist_stream:await_room(Conn, Id, Deadline) of
        ok ->
            case quic_dist_nif:stream_send_file(Conn, Id, File, Offset + Done,
                                                Length, Fin andalso Last) of
                {ok, Length} ->
                    _ = Progress(Done + Length, Total),
                    case Last of
                        true -> {ok, Total};
                        false -> send_pieces(Conn, Id, File, Set, Total,
                                             Progress, Done + Length)
                    end;
                {ok, _Short} ->
                    {error, eof};
                busy ->
                    %% Another process that sends was quicker.
                    send_pieces(Conn, Id, File, Set, Total, Progress, Done);
                {error, _} = Error ->
                    Error
            end;
        {error, _} = Error ->
            Error
    end.

%% @doc Writes what a passive stream brings to a file: `length' bytes, or all up
%% to the peer's end. The file is made if there is none; what is in it before
%% `offset' stays, what is behind it goes.
-spec recv(conn(), id(), file:name_all(), [recv_opt()], progress()) ->
          {ok, Received :: non_neg_integer()} | {error, error()}.
recv(Conn, Id, Path, Opts, Progress) ->
    case options(Opts, #{offset => 0, length => all, timeout => infinity}) of
        {ok, #{offset := Offset} = Set} ->
            from(Path, Offset, fun(File) ->
                                       recv_pieces(Conn, Id, File, Set,
                                                   Progress, 0)
                               end);
        {error, _} = Error ->
            Error
    end.

%% A file that Fun writes from Offset on. What is only known when it is closed
%% (a network's full disk) is an error as well. What is in the file stays until
%% there is something in place of it (cut/2): the stream may be one that cannot be
%% read.
from(Path, Offset, Fun) ->
    case file:open(Path, [read, write, raw, binary]) of
        {ok, File} ->
            Result = case at(File, Offset) of
                         ok -> Fun(File);
                         {error, _} = Wrong -> Wrong
                     end,
            case {Result, file:close(File)} of
                {{ok, _}, {error, _} = Error} -> Error;
                _ -> Result
            end;
        {error, _} = Error ->
            Error
    end.

%% Whoever asks for a place behind the file's end is wrong about the file.
at(File, Offset) ->
    case file:position(File, eof) of
        {ok, Size} when Size < Offset ->
            {error, {bad_option, offset, Offset}};
        {ok, _} ->
            ok;
        {error, _} = Error ->
            Error
    end.

cut(File, Offset) ->
    case file:position(File, Offset) of
        {ok, Offset} -> file:truncate(File);
        {error, _} = Error -> Error
    end.

recv_pieces(_Conn, _Id, File, #{length := 0} = Set, Progress, 0) ->
    _ = Progress(0, 0),
    case write(File, <<>>, Set, 0) of
        ok -> {ok, 0};
        {error, _} = Error -> Error
    end;
recv_pieces(_Conn, _Id, _File, #{length := Done}, _Progress, Done) ->
    {ok, Done};
recv_pieces(Conn, Id, File, #{length := Length, timeout := Timeout} = Set,
            Progress, Done) ->
    {Piece, Total} = case Length of
                         all -> {0, unknown};
                         _ -> {min(?PIECE, Length - Done), Length}
                     end,
    case quic_dist_stream:recv_piece(Conn, Id, Piece, Timeout) of
        {ok, <<>>, true} when Length =/= all ->
            {error, eof};
        {ok, Data, Fin} ->
            case write(File, Data, Set, Done) of
                ok ->
                    So = Done + byte_size(Data),
                    _ = Progress(So, Total),
                    if
                        not Fin; So =:= Length ->
                            recv_pieces(Conn, Id, File, Set, Progress, So);
                        Length =:= all ->
                            {ok, So};
                        true ->
                            {error, eof}
                    end;
                {error, _} = Error ->
                    Error
            end;
        {error, closed} when Length =/= all ->
            {error, eof};
        {error, _} = Error ->
            Error
    end.

write(File, Data, #{offset := Offset}, 0) ->
    case cut(File, Offset) of
        ok -> file:write(File, Data);
        {error, _} = Error -> Error
    end;
write(File, Data, _Set, _Done) ->
    file:write(File, Data).

%% @doc The SHA-256 of a file's first `Length' bytes, or of all of it.
-spec sha256(file:name_all(), Length :: non_neg_integer() | all) ->
          {ok, <<_:256>>} | {error, eof | badarg | file:posix()}.
sha256(Path, Length) ->
    with_file(Path, fun(File, Size) ->
                            hash(quic_dist_nif:hash_new(), File, 0,
                                 total(Length, 0, Size))
                    end).

hash(Hash, _File, Total, Total) ->
    {ok, quic_dist_nif:hash_value(Hash)};
hash(Hash, File, Done, Total) ->
    Length = min(?HASH_PIECE, Total - Done),
    case quic_dist_nif:hash_file(Hash, File, Done, Length) of
        {ok, Length} -> hash(Hash, File, Done + Length, Total);
        {ok, _Short} -> {error, eof};
        {error, _} = Error -> Error
    end.

with_file(Path, Fun) ->
    case native(Path) of
        {ok, Native} ->
            case quic_dist_nif:file_open(Native) of
                {ok, File, Size} ->
                    try
                        Fun(File, Size)
                    after
                        ok = quic_dist_nif:file_close(File)
                    end;
                {error, _} = Error ->
                    Error
            end;
        {error, badarg} ->
            {error, badarg}
    end.

%% As `file' does it: a binary is as the operating system has it.
native(Path) when is_binary(Path) ->
    {ok, Path};
native(Path) ->
    try unicode:characters_to_binary(filename:flatten(Path), unicode,
                                     file:native_name_encoding()) of
        Native when is_binary(Native) -> {ok, Native};
        _ -> {error, badarg}
    catch
        error:_ -> {error, badarg}
    end.

options([fin | Opts], Set) ->
    options([{fin, true} | Opts], Set);
options([{Name, Value} | Opts], Set) when is_map_key(Name, Set) ->
    case is_option(Name, Value) of
        true -> options(Opts, Set#{Name := Value});
        false -> {error, {bad_option, Name, Value}}
    end;
options([], Set) ->
    {ok, Set};
options([{Name, Value} | _], _Set) ->
    {error, {bad_option, Name, Value}};
options([Bad | _], _Set) ->
    {error, {bad_option, Bad, undefined}};
options(Bad, _Set) ->
    {error, {bad_option, Bad, undefined}}.

is_option(fin, Fin) -> is_boolean(Fin);
is_option(length, all) -> true;
is_option(timeout, infinity) -> true;
is_option(Name, N) when Name =/= fin -> is_integer(N) andalso N >= 0.
