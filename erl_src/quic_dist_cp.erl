%% @doc The command line of `priv/quic_dist_cp': arguments, a progress bar, words
%% for what went wrong. The copying is `quic_dist_copy'.
-module(quic_dist_cp).

-export([main/0]).
%% for the tests
-export([place/1, bar/4]).

-define(USAGE,
"usage: quic_dist_cp [OPTION...] NODE:PATH PATH
       quic_dist_cp [OPTION...] PATH NODE:PATH

Copies a file from or to a node, over QUIC, and compares the SHA-256 of both at
the end. NODE is name@host. PATH may be a folder where it is the target. A copy
that was interrupted (PATH.part) is continued.

  -n, --no-clobber  do not replace a file that is there
  -q, --quiet       no progress bar, no words but for errors
  -p, --progress    a progress bar, even where there is no terminal
  -6                over IPv6 (-proto_dist quic6)
  -h, --help        this text

The cookie is that of erl: ~/.erlang.cookie. ERL_FLAGS may hold more flags of
erl's. The exit status is 0, 1 (the copy failed) or 2 (wrong arguments).
").

-type place() :: {local | node(), string()}.
-type show() :: quiet | plain | bar.

%% The bar is drawn anew at most so often.
-define(DRAW_MS, 100).

%% @doc Does what the command line says, and halts.
-spec main() -> no_return().
main() ->
    %% Names of files are shown as they are.
    _ = io:setopts(standard_error,
                   [{encoding, case file:native_name_encoding() of
                                   utf8 -> unicode;
                                   latin1 -> latin1
                               end}]),
    Terminal = os:getenv("QUIC_DIST_CP_TERMINAL") =:= "1",
    Show = case Terminal of
               true -> bar;
               false -> plain
           end,
    halt(case arguments(init:get_plain_arguments(), [], Show) of
             help ->
                 io:put_chars(?USAGE),
                 0;
             {usage, Text} ->
                 say("~ts~n~n~ts", [Text, ?USAGE]),
                 2;
             {From, To, Opts, Shown} ->
                 run(From, To, Opts, Shown)
         end).

%%% Arguments

arguments([Arg | _], _, _) when Arg =:= "-h"; Arg =:= "--help" ->
    help;
arguments([Arg | Args], Opts, _) when Arg =:= "-q"; Arg =:= "--quiet" ->
    arguments(Args, Opts, quiet);
arguments([Arg | Args], Opts, _) when Arg =:= "-p"; Arg =:= "--progress" ->
    arguments(Args, Opts, bar);
arguments([Arg | Args], Opts, Show) when Arg =:= "-n"; Arg =:= "--no-clobber" ->
    arguments(Args, [no_clobber | Opts], Show);
arguments(["-6" | Args], Opts, Show) ->
    %% priv/quic_dist_cp has seen to it
    arguments(Args, Opts, Show);
arguments(["--" | Args], Opts, Show) ->
    places(Args, Opts, Show);
arguments([[$- | _] = Arg | _], _, _) ->
    {usage, ["unknown option: ", Arg]};
arguments(Args, Opts, Show) ->
    places(Args, Opts, Show).

places([From, To], Opts, Show) ->
    case {place(From), place(To)} of
        {{local, ""}, _} -> {usage, "the path of the source is empty"};
        {_, {local, ""}} -> {usage, "the path of the target is empty"};
        {{local, _}, {local, _}} -> {usage, "neither path is at a node"};
        {{local, _} = F, T} -> {F, T, Opts, Show};
        {F, {local, _} = T} -> {F, T, Opts, Show};
        _ -> {usage, "both paths are at a node"}
    end;
places(_, _Opts, _Show) ->
    {usage, "two paths are wanted"}.

%% @private `name@host:path'; whatever has no `@' before the first colon, or a
%% slash there, is a path here.
-spec place(string()) -> place().
place(Text) ->
    case string:split(Text, ":") of
        [Node, Path] ->
            case {string:split(Node, "@", all), lists:member($/, Node)} of
                {[[_ | _], [_ | _]], false} -> {list_to_atom(Node), path(Path)};
                _ -> {local, Text}
            end;
        [Text] ->
            {local, Text}
    end.

%% Nothing after the colon is the node's own folder.
path("") -> ".";
path(Path) -> Path.

%%% What is done

-spec run(place(), place(), [quic_dist_copy:opt()], show()) -> 0 | 1.
run(From, To, Opts, Show) ->
    Node = case {From, To} of
               {{local, _}, {N, _}} -> N;
               {{N, _}, _} -> N
           end,
    case connect(Node) of
        ok ->
            copy(here(From), here(To), Opts, Show);
        {error, Reason} ->
            say("quic_dist_cp: cannot connect to ~ts: ~ts~n", [Node, Reason]),
            1
    end.

%% The other node gives us a name: nobody can dial us, and EPMD does not know us.
connect(Node) ->
    [_, Host] = string:split(atom_to_list(Node), "@"),
    Domain = case lists:member($., Host) of
                 true -> longnames;
                 false -> shortnames
             end,
    %% the host is any that looks like one
    Name = list_to_atom("undefined@" ++ Host),
    case net_kernel:start(Name, #{name_domain => Domain, hidden => true,
                                  dist_listen => false}) of
        {ok, _} ->
            case net_kernel:connect_node(Node) of
                true -> ok;
                _ -> {error, "it is not there, has another cookie, or another carrier"}
            end;
        {error, Reason} ->
            {error, io_lib:format("~0tp", [Reason])}
    end.

here({local, Path}) -> {node(), Path};
here(Place) -> Place.

copy({_, FromPath} = From, To, Opts, Show) ->
    Name = filename:basename(FromPath),
    Started = erlang:monotonic_time(millisecond),
    Report = fun(Event) -> report(Event, Name, Show) end,
    case quic_dist_copy:copy(From, To, Opts, Report) of
        {ok, #{size := Size, sent := Sent, sha256 := Hash}} ->
            Took = max(1, erlang:monotonic_time(millisecond) - Started),
            Show =:= quiet orelse
                say("~ts: ~ts, of which ~ts sent in ~.1f s, sha256 ~ts~n",
                    [Name, bytes(Size), bytes(Sent), Took / 1000, hex(Hash)]),
            0;
        {error, {{Node, Path}, Reason}} ->
            Where = [[atom_to_list(Node), $:] || Node =/= node()],
            say("quic_dist_cp: ~ts~ts: ~ts~n", [Where, Path, reason(Reason)]),
            1
    end.

reason(differs) ->
    "what arrived differs from the source; it was deleted";
reason(changed) ->
    "the file changed while it was copied";
reason(eof) ->
    "the file became shorter while it was copied";
reason(noconnection) ->
    "the connection ended";
reason({reset, {connection, _}}) ->
    "the connection ended";
reason({no, Module}) ->
    io_lib:format("the node has no ~s: its quic_dist is older", [Module]);
reason(stream_limit) ->
    "it takes no more streams (user_streams)";
reason({reset, Code}) when is_integer(Code) ->
    io_lib:format("the stream was cut (~w)", [Code]);
reason(Reason) when is_atom(Reason) ->
    case file:format_error(Reason) of
        "unknown POSIX error" ++ _ -> atom_to_list(Reason);
        Text -> Text
    end;
reason(Reason) ->
    io_lib:format("~0tp", [Reason]).

%%% What is shown

report(_Event, _Name, quiet) ->
    ok;
report({comparing, Bytes}, Name, _) ->
    say("~ts: comparing ~ts that are there already~n", [Name, bytes(Bytes)]);
report({resuming, Bytes}, Name, _) ->
    say("~ts: going on behind ~ts~n", [Name, bytes(Bytes)]);
report({differs, Bytes}, Name, _) ->
    say("~ts: the ~ts that are there are of something else: starting anew~n",
        [Name, bytes(Bytes)]);
report({progress, Done, Total}, Name, bar) ->
    draw(Done, Total, Name);
report(verifying, Name, bar) ->
    io:put_chars(standard_error, ["\n", Name, ": comparing\n"]);
report(_, _Name, plain) ->
    ok.

%% When the bar was drawn last, and since when and how many bytes it counts, is
%% kept in the process dictionary: nothing else runs in this process.
draw(Done, Total, Name) ->
    Now = erlang:monotonic_time(millisecond),
    {Start, First, Last} = case get(?MODULE) of
                               undefined -> {Now, Done, Now - ?DRAW_MS};
                               Known -> Known
                           end,
    Due = Now - Last >= ?DRAW_MS orelse Done =:= Total,
    put(?MODULE, {Start, First, case Due of true -> Now; false -> Last end}),
    Rate = case Now - Start of
               0 -> unknown;
               Ms -> (Done - First) * 1000 div Ms
           end,
    Due andalso io:put_chars(standard_error, [$\r, bar(Name, Done, Total, Rate)]).

%% @private One line of 79 columns.
-spec bar(string(), non_neg_integer(), non_neg_integer(),
          non_neg_integer() | unknown) -> string().
bar(Name, Done, Total, Rate) ->
    Percent = case Total of
                  0 -> 100;
                  _ -> Done * 100 div Total
              end,
    Full = Percent * 20 div 100,
    Left = case Rate of
               _ when Done =:= Total -> "";
               N when is_integer(N), N > 0 -> clock((Total - Done) div N);
               _ -> "-:--"
           end,
    Speed = case Rate of
                unknown -> "";
                _ -> [bytes(Rate), "/s"]
            end,
    lists:flatten(
      io_lib:format("~-19.19ts ~3w% [~ts~ts] ~10ts ~12ts ~7ts",
                    [Name, Percent, lists:duplicate(Full, $=),
                     lists:duplicate(20 - Full, $\s), bytes(Done), Speed, Left])).

clock(Seconds) when Seconds >= 360000 ->
    "days";
clock(Seconds) when Seconds >= 3600 ->
    io_lib:format("~w:~2..0w:~2..0w", [Seconds div 3600, Seconds rem 3600 div 60,
                                      Seconds rem 60]);
clock(Seconds) ->
    io_lib:format("~w:~2..0w", [Seconds div 60, Seconds rem 60]).

bytes(N) when N < 1024 ->
    io_lib:format("~w B", [N]);
bytes(N) ->
    scaled(N / 1024, ["KiB", "MiB", "GiB", "TiB"]).

scaled(N, [_ | [_ | _] = Units]) when N >= 1024 ->
    scaled(N / 1024, Units);
scaled(N, [Unit | _]) ->
    io_lib:format("~.1f ~s", [N, Unit]).

hex(Hash) ->
    [io_lib:format("~2.16.0b", [Byte]) || <<Byte>> <= Hash].

say(Format, Args) ->
    io:format(standard_error, Format, Args).
