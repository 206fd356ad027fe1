%% Plots as SVG text: groups of bars with whiskers, and curves of latency over percentiles. Knows nothing of carriers or rows.
-module(quic_dist_bench_svg).

-export([bars/5, curves/3]).

-define(WIDTH, 860).
-define(HEIGHT, 380).
-define(LEFT, 80).
-define(RIGHT, 840).
-define(TOP, 78).
-define(BOTTOM, 340).
-define(COLORS, {"#4878a8", "#d98c3f", "#3f9e5f", "#8e5ea2", "#b5504d", "#5f9ea0", "#777777", "#b8b03a"}).

%% A bar from the axis to the median, a whisker from the smallest to the largest value.
%% Names are those of all plots: a name has the same colour in each.
-spec bars(string(), string(), linear | log, [{string(), [{string(), quic_dist_bench_stats:summary()}]}], [string()]) -> iodata().
bars(Title, Unit, Scale, Groups, Names) ->
    Series = names([Bars || {_, Bars} <- Groups]),
    All = [V || {_, Bars} <- Groups, {_, Summary} <- Bars, V <- maps:values(Summary), V > 0],
    Axis = axis(Scale, All),
    Slot = (?RIGHT - ?LEFT) / length(Groups),
    Bar = min(60.0, Slot * 0.8 / length(Series)),
    svg(Title, Series, Names,
        [horizontal(Axis, Unit),
         [begin
              Middle = ?LEFT + Slot * (I + 0.5),
              Begin = Middle - Bar * length(Bars) / 2,
              [text(Middle, ?BOTTOM + 20, "middle", Label),
               [bar(Begin + Bar * N, Bar, Axis, Summary, color(Name, Names)) || {N, {Name, Summary}} <- numbered(Bars)]]
          end || {I, {Label, Bars}} <- numbered(Groups)]]).

bar(X, Width, Axis, #{median := Median, min := Min, max := Max}, Color) ->
    Y = y(Axis, Median),
    Middle = X + Width / 2,
    [io_lib:format("<rect x='~.1f' y='~.1f' width='~.1f' height='~.1f' fill='~s'/>~n", [X + 2, Y, Width - 4, max(0.5, ?BOTTOM - Y), Color]),
     line(Middle, y(Axis, Min), Middle, y(Axis, Max), "#222222"),
     [line(Middle - 5, y(Axis, V), Middle + 5, y(Axis, V), "#222222") || V <- [Min, Max]],
     small(Middle, y(Axis, Max) - 5, quic_dist_bench_report:number(Median))].

%% Latency in ns on a logarithmic x axis; on the y axis each step is ten times rarer: 90 %, 99 %, 99.9 %.
-spec curves(string(), [{string(), [{number(), float()}]}], [string()]) -> iodata().
curves(Title, Lines, Names) ->
    Series = names([Lines]),
    All = [Ns / 1000 || {_, Points} <- Lines, {Ns, _} <- Points],
    Axis = axis(log, All),
    Rarest = lists:min([1 - element(2, lists:last(lists:droplast(Points))) || {_, Points} <- Lines, length(Points) > 1] ++ [0.1]),
    Depth = min(4.0, max(2.0, -math:log10(Rarest) + 0.5)),
    svg(Title, Series, Names,
        [[[line(x(Axis, Us), ?TOP, x(Axis, Us), ?BOTTOM, "#dddddd"), text(x(Axis, Us), ?BOTTOM + 20, "middle", duration(Us))]
          || Us <- ticks(Axis)],
         [[line(?LEFT, rare(1 - Part, Depth), ?RIGHT, rare(1 - Part, Depth), "#dddddd"),
           text(?LEFT - 6, rare(1 - Part, Depth) + 4, "end", Label)]
          || {Part, Label} <- [{0.0, "0 %"}, {0.5, "50 %"}, {0.9, "90 %"}, {0.99, "99 %"}, {0.999, "99.9 %"}, {0.9999, "99.99 %"}],
             Part =:= 0.0 orelse -math:log10(1 - Part) =< Depth + 0.01],
         [io_lib:format("<polyline fill='none' stroke='~s' stroke-width='2' points='~s'/>~n",
                        [color(Name, Names),
                         lists:join(" ", [io_lib:format("~.1f,~.1f", [x(Axis, Ns / 1000), rare(1 - Part, Depth)])
                                         || {Ns, Part} <- Points])])
          || {Name, Points} <- Lines]]).

rare(Rest, Depth) ->
    Decades = case Rest of _ when Rest > 0 -> min(Depth, -math:log10(Rest)); _ -> Depth end,
    ?BOTTOM - (?BOTTOM - ?TOP) * Decades / Depth.

duration(Us) when Us >= 1.0e6 -> [plain(Us / 1.0e6), " s"];
duration(Us) when Us >= 1000 -> [plain(Us / 1000), " ms"];
duration(Us) -> [plain(Us), " us"].

plain(Number) when Number >= 1 -> integer_to_list(round(Number));
plain(Number) -> io_lib:format("~.2f", [float(Number)]).

%%% Axes: {Scale, From, To}

axis(linear, Values) -> {linear, 0.0, lists:max(Values) * 1.1};
axis(log, Values) ->
    {log, math:floor(math:log10(lists:min(Values)) * 1.0), math:ceil(math:log10(lists:max(Values) * 1.05))}.

part({linear, From, To}, Value) -> (Value - From) / (To - From);
part({log, From, To}, Value) -> (math:log10(max(Value, 1.0e-9)) - From) / (To - From).

y(Axis, Value) -> ?BOTTOM - (?BOTTOM - ?TOP) * max(0.0, part(Axis, Value)).
x(Axis, Value) -> ?LEFT + (?RIGHT - ?LEFT) * max(0.0, part(Axis, Value)).

ticks({log, From, To}) -> [math:pow(10, Exponent) || Exponent <- lists:seq(round(From), round(To))];
ticks({linear, _, To}) ->
    Rough = To / 5,
    Power = math:pow(10, math:floor(math:log10(Rough))),
    Step = hd([S * Power || S <- [1, 2, 5, 10], S * Power >= Rough]),
    [Step * I || I <- lists:seq(0, trunc(To / Step))].

horizontal(Axis, Unit) ->
    [text(?LEFT - 6, ?TOP - 12, "end", Unit),
     [[line(?LEFT, y(Axis, Value), ?RIGHT, y(Axis, Value), "#dddddd"), text(?LEFT - 6, y(Axis, Value) + 4, "end", tick(Value))]
      || Value <- ticks(Axis)]].

tick(Value) when Value >= 1; Value == 0 -> quic_dist_bench_report:number(round(Value));
tick(Value) -> quic_dist_bench_report:number(Value).

%%% Elements

svg(Title, Series, Names, Content) ->
    [io_lib:format("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 ~b ~b' font-family='sans-serif' font-size='12' fill='#222222'>~n",
                   [?WIDTH, ?HEIGHT]),
     io_lib:format("<rect width='~b' height='~b' fill='white'/>~n", [?WIDTH, ?HEIGHT]),
     io_lib:format("<text x='~b' y='24' font-size='15' font-weight='bold'>~ts</text>~n", [?LEFT, escaped(Title)]),
     legend(Series, Names), Content,
     line(?LEFT, ?BOTTOM, ?RIGHT, ?BOTTOM, "#222222"),
     "</svg>\n"].

%% Each name takes the room that it needs.
legend(Series, Names) ->
    {Legend, _} = lists:mapfoldl(
        fun(Name, X) ->
            {[io_lib:format("<rect x='~.1f' y='36' width='12' height='12' fill='~s'/>~n", [X, color(Name, Names)]),
              text(X + 17, 46, "start", Name)], X + 40 + 7.0 * length(Name)}
        end, float(?LEFT), Series),
    Legend.

text(X, Y, Anchor, Text) -> text(X, Y, Anchor, 12, Text).
small(X, Y, Text) -> text(X, Y, "middle", 9, Text).

text(X, Y, Anchor, Size, Text) ->
    io_lib:format("<text x='~.1f' y='~.1f' text-anchor='~s' font-size='~b'>~ts</text>~n",
                  [float(X), float(Y), Anchor, Size, escaped(Text)]).

line(X1, Y1, X2, Y2, Color) ->
    io_lib:format("<line x1='~.1f' y1='~.1f' x2='~.1f' y2='~.1f' stroke='~s'/>~n", [float(X1), float(Y1), float(X2), float(Y2), Color]).

escaped(Text) ->
    lists:flatmap(fun($<) -> "&lt;"; ($>) -> "&gt;"; ($&) -> "&amp;"; (C) -> [C] end, unicode:characters_to_list(Text)).

names(Groups) -> lists:usort([Name || Group <- Groups, {Name, _} <- Group]).

color(Name, Names) ->
    Place = length(lists:takewhile(fun(N) -> N =/= Name end, Names)),
    element(Place rem tuple_size(?COLORS) + 1, ?COLORS).

numbered(List) -> lists:zip(lists:seq(0, length(List) - 1), List).
